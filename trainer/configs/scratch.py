"""The residual network from scratch on the car crops: 196 classes at 112 pixels in 30 epochs.

    python -m pipeline preprocess --data_dir=car_crops --output_dir=/tmp/crops --image_size=176
    python -m trainer train --config=scratch --data_dir=/tmp/crops --model_dir=/tmp/model

Hardware: two CPU cores; about an hour of CPU time. Measured: seed 0 reached top-1 61.6 % and top-5
87.3 % on 1,657 test pictures (± 2.3 points); a plain PyTorch network of this size had 62.7 and
86.7 % on 32 colours at 128 pixels, 65.7 and 87.8 % in 24-bit colour (mean of two seeds). Curves,
and why it is no better, in docs/accuracy.md. Pictures are stored at 176 pixels because crops and
resizes then average several quantized pixels into one.
"""

from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CONFIG = TrainConfig(
    model=ModelConfig(model="resnet", dropout=0.3),
    augment=AugmentConfig(
        train_crop=112,
        crop_area=0.5,
        crop_aspect=1.22,  # e^0.2
        brightness=0.2,
        contrast=0.2,
        saturation=0.4,
        test_size=128,
        test_crop=128,
        test_flip=True,
    ),
    # 0.4 for 256 is 0.05 for the batch of 32.
    optimizer=OptimizerConfig(
        optimizer="sgd", learning_rate=0.4, weight_decay=1e-3, warmup=0.05, label_smoothing=0.1
    ),
    run=RunConfig(epochs=30, batch_size=32),
)
