"""Shards to a trained CNN: tf.data into Keras on JAX."""

import os

# The one place that chooses Keras's engine: Keras reads this when it is first imported, and every
# import of keras in this package comes after this line.
os.environ["KERAS_BACKEND"] = "jax"
