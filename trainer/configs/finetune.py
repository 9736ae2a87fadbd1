"""An ImageNet backbone made to tell cars apart: ResNet50V2 at 224 pixels in 30 epochs.

    python -m pipeline preprocess --data_dir=stanford_cars --output_dir=/tmp/cars
    python -m trainer train --config=finetune --data_dir=/tmp/cars --model_dir=/tmp/model

The weights are fetched by Keras where there is a network; elsewhere give their file by
`--weights=PATH`, or `--weights=none`. Hardware: a GPU or a TPU chip. Neither minutes nor accuracy
were measured; a plain recipe in print reached 90.0 % with a ResNet-50 on the 8,041 official test
pictures in 24-bit colour (eqy/PyTorch-Stanford-Cars-Baselines).
"""

from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CONFIG = TrainConfig(
    model=ModelConfig(model="ResNet50V2", weights="imagenet", dropout=0.3),
    augment=AugmentConfig(train_crop=224, brightness=0.2, contrast=0.2, saturation=0.4),
    optimizer=OptimizerConfig(optimizer="sgd", learning_rate=0.05, weight_decay=1e-4),
    run=RunConfig(epochs=30, batch_size=64),
)
