"""The residual network from scratch for as long as it still learns: 300 epochs at 224 pixels.

    python -m pipeline preprocess --data_dir=stanford_cars --output_dir=/tmp/cars
    python -m trainer train --config=long --data_dir=/tmp/cars --model_dir=/tmp/model

What 30 epochs cannot use: mixup and cutmix, smaller crops, stronger colours, an average of the
weights. Hardware: a GPU or a TPU slice: 2.4 million pictures of about 11.5 GFLOPs (scaled from 1.6
at 112 pixels and width 48) are 28 PFLOPs, days on CPU cores. Neither minutes nor accuracy were
measured.
"""

from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CONFIG = TrainConfig(
    model=ModelConfig(model="resnet", width=64, dropout=0.3),
    augment=AugmentConfig(
        train_crop=224,
        crop_area=0.3,
        crop_aspect=1.33,
        brightness=0.3,
        contrast=0.3,
        saturation=0.5,
        mixup=0.2,
        cutmix=1.0,
    ),
    optimizer=OptimizerConfig(
        optimizer="sgd", learning_rate=0.4, weight_decay=5e-4, label_smoothing=0.1, ema=0.9995
    ),
    run=RunConfig(epochs=300, batch_size=256),
)
