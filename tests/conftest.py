"""First of all, the trainer chooses Keras's engine: TensorFlow, which the tests of the pipeline read
records with, would import Keras with another.
"""

import trainer  # noqa: F401
