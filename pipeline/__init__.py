"""Pictures to TFRecord shards: an Apache Beam job. Imports neither TensorFlow nor JAX."""
