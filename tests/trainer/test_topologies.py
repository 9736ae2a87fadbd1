"""Slices by name. The TPU compiler itself is asked in test_tpu_check.py."""

import math

import pytest

from trainer import topologies
from trainer.errors import UsageError


@pytest.mark.parametrize(
    ("name", "chip", "sides"),
    [
        ("v5e:1x1", "v5e", (1, 1, 1)),
        ("v5e:2x4", "v5e", (2, 4, 1)),
        ("v4:2x2x4", "v4", (2, 2, 4)),
        ("v5p:28x16x20", "v5p", (28, 16, 20)),  # a pod, turned
        ("tpu7x:2x2x1", "tpu7x", (2, 2, 1)),
    ],
)
def test_names(name, chip, sides):
    assert topologies.parse(name) == (chip, sides)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", "no chip 'v9'; there are v2, v3, v4, v5e, v5p, v6e, tpu7x"),
        ("v5litepod-8", "no chip 'v5litepod-8'; there are v2, "),  # the name Cloud TPU rents it by
        ("v5e", "'' is not a shape in chips"),
        ("v5e:8", "'8' is not a shape"),
        ("v5e:0x4", "'0x4' is not a shape"),
        ("v5e:2x4x1x1", "'2x4x1x1' is not a shape"),
    ],
)
def test_a_name_that_is_none_is_refused_with_those_that_are(name, said):
    with pytest.raises(UsageError, match="as in v2:2x2") as refused:
        topologies.parse(name)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "pod"),
    [
        ("v5e:16x32", "16x16x1"),
        ("v6e:2x2x2", "16x16x1"),  # flat
        ("v4:16x16x17", "16x16x16"),
        ("tpu7x:25x2x2", "16x24x24"),
    ],
)
def test_more_than_a_pod_is_refused(name, pod):
    with pytest.raises(UsageError, match=f"a pod of .* is {pod} chips"):
        topologies.parse(name)


@pytest.mark.parametrize(
    ("sides", "hosts", "shape"),
    [
        ((2, 4, 1), None, (2, 2, 1)),
        ((1, 1, 1), None, (1, 1, 1)),
        ((4, 4, 4), None, (2, 2, 1)),
        ((2, 4, 1), 1, (2, 4, 1)),
        ((2, 4, 1), 2, (2, 2, 1)),  # not 1×4
        ((2, 4, 1), 8, (1, 1, 1)),
        ((3, 3, 1), 3, (1, 3, 1)),
    ],
)
def test_hosts_have_boxes_of_chips(sides, hosts, shape):
    found = topologies.host_shape("v5e:…", sides, hosts)
    assert math.prod(found) == math.prod(shape)
    assert sorted(found) == sorted(shape)


def test_hosts_that_cannot_share_the_chips_are_refused_with_those_that_can():
    with pytest.raises(UsageError, match="--hosts=3 .* 8 chips of v5e:2x4 .* one of 1, 2, 4, 8"):
        topologies.host_shape("v5e:2x4", (2, 4, 1), 3)


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="`make check-tpu`, or `pip install '.\\[tpu\\]'`"):
        topologies.require_compiler()
