"""The residual network from scratch on the car crops: 196 classes at 112 pixels in 30 epochs.

    python -m pipeline preprocess --data_dir=car_crops --output_dir=/tmp/crops --image_size=176
    python -m trainer train --config=scratch --data_dir=/tmp/crops --model_dir=/tmp/model

The protocol of a plain PyTorch network of this size, which reached top-1 62.7 % on 32 colours at
128 pixels and 65.7 % in 24-bit colour (mean of two seeds; one seed on 1,657 test pictures is ± 2.3
points), but for pictures that are stored at 176 pixels: crops and resizes then average several
quantized pixels into one. Hardware: two CPU cores; about an hour of CPU time. The accuracy of this
very recipe was not measured; a variant of it reached 61.6 %, see docs/accuracy.md.
"""

from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CONFIG = TrainConfig(
    model=ModelConfig(model="resnet", dropout=0.3),
    augment=AugmentConfig(
        train_crop=112,
        crop_area=0.5,
        crop_aspect=1.22,  # e^0.2
        brightness=0.1,
        contrast=0.0,
        saturation=0.0,
        test_size=128,
        test_crop=128,
        test_flip=True,
    ),
    # 0.4 for 256 is 0.1 for the batch of 64.
    optimizer=OptimizerConfig(
        optimizer="sgd", learning_rate=0.4, weight_decay=1e-3, warmup=0.05, label_smoothing=0.1
    ),
    run=RunConfig(epochs=30, batch_size=64),
)
