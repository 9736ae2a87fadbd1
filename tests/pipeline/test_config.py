import pytest

from pipeline.config import JobOptions, PictureOptions


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"crop": "tight"}, "--crop is 'tight'"),
        ({"fit": "squash"}, "--fit is 'squash'"),
        ({"quantizer": "median"}, "--quantizer is 'median'"),
        ({"encoding": "jpeg"}, "--encoding is 'jpeg'"),
        ({"crop": "box", "crop_margin": 1.5}, "--crop_margin is 1.5"),
        ({"crop_margin": 0.1}, "nothing is cropped"),
        ({"image_size": -1}, "--image_size is -1"),
        ({"image_size": 0}, "--image_size=0"),  # indexed stores one shape for all
        ({"colors": 1}, "--colors is 1"),
        ({"colors": 257}, "--colors is 257"),
        ({"colors": 0}, "--colors=0 does not go with --encoding=indexed"),
        ({"encoding": "rgb"}, "--colors=32 does not go with --encoding=rgb"),
        ({"encoding": "packed", "colors": 33}, "at most 32 colours"),
        ({"encoding": "packed", "image_size": 100}, "divisible by 8"),
    ],
)
def test_impossible_picture_options_name_the_flag_and_the_value(options, told):
    with pytest.raises(ValueError, match=told):
        PictureOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 0, "encoding": "png"},
        {"image_size": 0, "encoding": "rgb", "colors": 0},
        {"colors": 256},
        {"colors": 2, "encoding": "packed", "image_size": 224},
        {"crop": "box", "crop_margin": 0.1},
    ],
)
def test_picture_options_survive_json(options):
    made = PictureOptions(**options)
    assert PictureOptions.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"examples_per_shard": 0}, "--examples_per_shard is 0"),
        ({"max_reject_fraction": 1.01}, "--max_reject_fraction is 1.01"),
        ({"max_reject_fraction": -0.1}, "--max_reject_fraction is -0.1"),
    ],
)
def test_impossible_job_options_name_the_flag_and_the_value(options, told):
    with pytest.raises(ValueError, match=told):
        JobOptions("in", "out", **options)


@pytest.mark.parametrize("folders", [("", "out"), ("data", "")])
def test_an_empty_folder_is_not_taken_for_the_current_one(folders):
    with pytest.raises(ValueError, match="_dir is empty; give a folder"):
        JobOptions(*folders)
