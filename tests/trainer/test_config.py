"""The recipe: validation, flags, JSON, and what may differ when a run is continued."""

import argparse
import dataclasses

import pytest

from trainer import config
from trainer.config import AugmentConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from trainer.errors import UsageError


def parse(*arguments: str, base: TrainConfig | None = None) -> TrainConfig:
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    return config.from_flags(base or TrainConfig(), parser.parse_args(arguments))


def test_no_flag_keeps_every_value_of_the_base():
    base = TrainConfig(run=RunConfig(epochs=3, cache=True), model=ModelConfig(model="small"))
    assert parse(base=base) == base


def test_flags_reach_their_fields():
    recipe = parse(
        "--model=small", "--learning_rate=0.25", "--flip=false", "--cache", "--mixup=0.2"
    )
    assert recipe.model.model == "small"
    assert recipe.optimizer.learning_rate == 0.25
    assert recipe.augment.flip is False
    assert recipe.run.cache is True
    assert recipe.augment.mixup == 0.2


def test_every_field_is_a_flag_with_help_and_no_two_share_a_name():
    parser = argparse.ArgumentParser()
    config.add_flags(parser)  # argparse refuses a name that is taken
    actions = {action.dest: action for action in parser._actions}
    for section in (ModelConfig, AugmentConfig, OptimizerConfig, RunConfig):
        for field in dataclasses.fields(section):
            assert actions[field.name].help


@pytest.mark.parametrize("flag", ["--optimizer=adagrad", "--flip=maybe", "--epochs=many"])
def test_values_of_the_wrong_kind_are_refused_by_the_parser(flag, capsys):
    with pytest.raises(SystemExit):
        parse(flag)
    assert flag.split("=")[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--epochs=0", "--epochs is 0"),
        ("--dropout=1.5", "--dropout is 1.5"),
        ("--crop_area=0", "--crop_area is 0"),
        ("--ema=1", "--ema is 1"),
        ("--batch_size=12", "8 and 16"),  # data_streams is 8
        ("--batch_size=4", "fit: 8"),
    ],
)
def test_impossible_values_are_refused_with_the_value_or_those_that_fit(flag, said):
    with pytest.raises(UsageError, match=said):
        parse(flag)


def test_json_gives_the_same_recipe_back():
    recipe = parse("--model=squeezenet", "--ema=0.99", "--learning_rate=0.1")
    assert TrainConfig.from_json(recipe.to_json()) == recipe


def test_only_choices_that_change_numbers_count_as_differences():
    recipe = parse()
    assert recipe.differences(parse("--cache", "--log_every=7", "--keep_checkpoints=9")) == []
    assert recipe.differences(parse("--seed=4", "--optimizer=lamb")) == [
        "--optimizer: sgd / lamb",
        "--seed: 0 / 4",
    ]


@pytest.mark.parametrize(
    ("stored", "train_crop", "test_size"), [(256, 224, 256), (128, 112, 128), (72, 56, 72)]
)
def test_sizes_left_at_zero_follow_the_stored_size(stored, train_crop, test_size):
    sizes = AugmentConfig().at(stored)
    assert (sizes.train_crop, sizes.test_size, sizes.test_crop) == (
        train_crop,
        test_size,
        test_size,
    )


def test_a_test_crop_larger_than_its_picture_is_refused():
    with pytest.raises(UsageError, match="--test_crop=200"):
        AugmentConfig(test_crop=200).at(128)


@pytest.mark.parametrize(
    ("batch", "streams", "devices", "hosts", "said"),
    [
        (64, 8, 6, 1, "48 and 72"),  # multiples of 6 and of 8
        (64, 8, 128, 1, "fit: 128"),
        (64, 8, 3, 3, "devices"),
        (48, 8, 6, 3, "--data_streams=8 cannot be split over 3 hosts"),
    ],
)
def test_a_batch_that_devices_or_hosts_cannot_share_is_refused(
    batch, streams, devices, hosts, said
):
    run = RunConfig(batch_size=batch, data_streams=streams)
    with pytest.raises(UsageError, match=said):
        config.check_batch_size(run, devices, hosts)


def test_a_batch_that_fits_passes():
    config.check_batch_size(RunConfig(batch_size=64), 8, 2)
