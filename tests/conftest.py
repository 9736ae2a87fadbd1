"""First of all, the trainer chooses Keras's engine.

TensorFlow, with which the tests of the pipeline read records, would import Keras with another.
"""

import trainer  # noqa: F401
