"""Shards to a trained CNN: tf.data into Keras on JAX."""
