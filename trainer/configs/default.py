"""The defaults of `trainer.config`, for a data set nobody has tuned for."""

from trainer.config import TrainConfig

CONFIG = TrainConfig()
