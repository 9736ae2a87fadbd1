"""Shards to a trained CNN: tf.data into Keras on JAX."""

import os
import sys

# The one place that chooses Keras's engine. Keras reads this when it is first imported, and every
# import of it in this package comes after this line.
os.environ["KERAS_BACKEND"] = "jax"

if "keras" in sys.modules and sys.modules["keras"].config.backend() != "jax":
    raise ImportError(
        f"keras was imported before trainer, with its {sys.modules['keras'].config.backend()} "
        "backend; import trainer first, or set KERAS_BACKEND=jax"
    )
