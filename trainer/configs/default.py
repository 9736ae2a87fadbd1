"""The defaults of `trainer.config`, for a data set nobody has tuned for.

    python -m pipeline preprocess --data_dir=stanford_cars --output_dir=/tmp/cars
    python -m trainer train --data_dir=/tmp/cars --model_dir=/tmp/model

256-pixel pictures, trained at 224, 30 epochs. Hardware: any; on two CPU cores about ten pictures a
second, so hours. Its accuracy was not measured.
"""

from trainer.config import TrainConfig

CONFIG = TrainConfig()
