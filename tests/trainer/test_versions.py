"""Versions that go together, and those that do not."""

import re
from pathlib import Path

import pytest

from trainer import versions
from trainer.errors import UsageError

GOOD = {
    "python": "3.11.9",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "libtpu": "0.0.42.1",
    "keras": "3.15.1",
}
# What jax 0.10.2 says of itself, and what this project adds.
NEEDS = ["python>=3.11", "keras>=3.15", "jaxlib<=0.10.2,>=0.10.2", "libtpu==0.0.42.*"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"libtpu": "0.0.42.7"}, []),  # a later build of the same release
        ({"python": "3.12.1"}, []),
        ({"libtpu": "0.0.30"}, ["libtpu==0.0.42.* is needed, not 0.0.30"]),
        ({"libtpu": None}, ["libtpu==0.0.42.* is needed and not installed"]),
        ({"jaxlib": "0.10.1"}, ["jaxlib<=0.10.2,>=0.10.2 is needed, not 0.10.1"]),
        ({"keras": "3.4.0"}, ["keras>=3.15 is needed, not 3.4.0"]),
        # The Python of a TPU VM's usual image.
        ({"python": "3.10.12"}, ["python>=3.11 is needed, not 3.10.12"]),
        # A nightly build is as good as its number.
        ({"libtpu": "0.0.43.dev20260901"}, ["libtpu==0.0.42.* is needed, not 0.0.43.dev20260901"]),
        (
            {"keras": "3.14.9", "libtpu": "0.0.41"},
            ["keras>=3.15 is needed, not 3.14.9", "libtpu==0.0.42.* is needed, not 0.0.41"],
        ),
    ],
)
def test_what_does_not_go_together_is_named(changes, said):
    installed = {name: version for name, version in {**GOOD, **changes}.items() if version}
    assert versions.mismatches(installed, NEEDS) == said


def test_the_needs_of_jax_are_those_of_its_tpu_extra():
    needs = versions.jax_needs()
    assert {re.split("[<=>]", need)[0] for need in needs} == {"jaxlib", "libtpu"}
    assert versions.mismatches(versions.PINS, needs) == []


def test_pins_are_those_of_constraints():
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert {f"{name}=={version}" for name, version in versions.PINS.items()} <= set(lines)


def test_a_wrong_version_is_refused_with_the_pins_named(monkeypatch):
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.10.12")
    with pytest.raises(UsageError) as refused:
        versions.check_tpu()
    message = str(refused.value)
    assert "python>=3.11 is needed, not 3.10.12" in message
    assert "jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1 keras==3.15.1" in message
    assert len(message.splitlines()) <= 2
