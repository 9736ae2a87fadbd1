"""The drawn sample of `make demo`: 10 classes, 1,000 training pictures of 64×64, from scratch.

    python -m pipeline sample /tmp/sample
    python -m pipeline preprocess --data_dir=/tmp/sample --output_dir=/tmp/shards --image_size=64
    python -m trainer train --config=demo --data_dir=/tmp/shards --model_dir=/tmp/model

Pictures are trained on at the size they are tested at: the last maps are 2×2, where another size
is another network.
"""

from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig

CONFIG = TrainConfig(
    model=ModelConfig(model="small", dropout=0.0),
    augment=AugmentConfig(train_crop=64, crop_area=0.6, saturation=0.5),
    optimizer=OptimizerConfig(learning_rate=0.4, weight_decay=1e-3),
    run=RunConfig(epochs=20, batch_size=32),
)
