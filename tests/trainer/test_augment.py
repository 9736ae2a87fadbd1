"""Augmentation against Pillow and NumPy; functions of the example, never of its row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests.trainer import shards
from trainer import augment, palette

SIDE, CROP = 32, 24

train = jax.jit(augment.train_pictures, static_argnums=(1, 3))
evaluate = jax.jit(augment.eval_pictures, static_argnums=(1,))
mix = jax.jit(augment.mix, static_argnums=2)

ALL = augment.AugmentOptions(
    crop_size=CROP,
    crop_area=(0.4, 0.9),
    crop_aspect=1.3,
    flip=True,
    brightness=0.1,
    contrast=0.2,
    saturation=0.3,
    pixel_noise=2.0,
    mixup=0.4,
    cutmix=1.0,
)


def draw(rows=16, colors=32, side=SIDE):
    rng = np.random.default_rng(0)
    return {
        "indices": rng.integers(0, colors, (rows, side, side), np.uint8),
        "palette": rng.integers(0, 256, (rows, colors, 3), np.uint8),
        "id_hash": rng.integers(0, 1 << 32, rows, np.uint32),
        "label": np.arange(rows, dtype=np.int32),
    }


def as_image(batch):
    image = np.stack([p[i] for p, i in zip(batch["palette"], batch["indices"], strict=True)])
    return {"image": image}


def keys_of(batch, seed=1, step=2):
    return augment.example_keys(seed, step, batch["id_hash"])


def ramps(rows, side=SIDE):
    """Returns pictures whose first two channels are the row and the column of the pixel."""
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return jnp.broadcast_to(
        np.stack([y, x, 0 * x], axis=-1).astype(np.float32), (rows, side, side, 3)
    )


def extents(crops, size):
    """Returns first edge and length of each crop, (B, 2) each, from crops of ramps."""
    crops = np.asarray(crops)
    inner = slice(size // 4, -size // 4)  # away from the picture's edge the ramp stays straight
    first, length = [], []
    for line in (crops[:, :, size // 2, 0], crops[:, size // 2, :, 1]):
        slope, start = np.polyfit(np.arange(size)[inner], line[:, inner].T, 1)
        length.append(slope * size)
        first.append(start + 0.5 - slope / 2)
    return np.stack(first, axis=1), np.stack(length, axis=1)


def pillow_resize(picture, size):
    return np.stack(
        [
            np.asarray(
                Image.fromarray(picture[..., c]).resize((size, size), Image.Resampling.BILINEAR)
            )
            for c in range(3)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("encoding", ["packed", "image"])
def test_every_encoding_gives_the_same_pictures(encoding):
    batch = draw()
    other = (
        as_image(batch)
        if encoding == "image"
        else {
            "packed": np.stack([shards.pack(i) for i in batch["indices"]]),
            "palette": batch["palette"],
        }
    )
    keys = keys_of(batch)
    for options in (augment.EvalOptions(SIDE, CROP), augment.EvalOptions(28, CROP)):
        np.testing.assert_allclose(evaluate(other, options), evaluate(batch, options), atol=1e-6)
    np.testing.assert_allclose(
        train(other, ALL, keys),
        train(batch, ALL, keys),
        atol=1e-5,
    )


def test_an_example_is_varied_the_same_in_any_row():
    batch = draw()
    pictures = np.asarray(train(batch, ALL, keys_of(batch)))
    rows = np.random.default_rng(1).permutation(16)[:9]
    part = {name: value[rows] for name, value in batch.items()}
    np.testing.assert_allclose(train(part, ALL, keys_of(part)), pictures[rows], atol=1e-6)


def test_seed_step_and_example_all_matter():
    batch = draw(rows=2)
    batch = {name: np.stack([value[0]] * 2) for name, value in batch.items()}
    batch["id_hash"] = np.array([5, 6], np.uint32)

    def pictures(seed, step):
        return np.asarray(train(batch, ALL, keys_of(batch, seed, step)))

    first = pictures(1, 2)
    assert (first == pictures(1, 2)).all()
    assert (first != pictures(1, 3)).mean() > 0.9
    assert (first != pictures(2, 2)).mean() > 0.9
    assert (first[0] != first[1]).mean() > 0.9


def test_nothing_is_varied_by_default():
    batch = draw()
    pictures = train(batch, augment.AugmentOptions(SIDE), keys_of(batch))
    expected = (as_image(batch)["image"].astype(np.float32) - 128) / 128
    np.testing.assert_array_equal(pictures, expected)


@pytest.mark.parametrize(("resize", "crop"), [(SIDE, CROP), (SIDE, SIDE), (SIDE, 25)])
def test_evaluation_crops_the_centre(resize, crop):
    batch = draw()
    edge = (SIDE - crop) // 2
    expected = as_image(batch)["image"][:, edge : edge + crop, edge : edge + crop]
    pictures = evaluate(batch, augment.EvalOptions(resize, crop))
    np.testing.assert_array_equal(np.asarray(pictures) * 128 + 128, expected)


@pytest.mark.parametrize(("resize", "crop"), [(20, 20), (20, 16), (48, 48), (48, 33)])
def test_evaluation_resizes_as_pillow_does(resize, crop):
    batch = draw(rows=3)
    edge = (resize - crop) // 2
    pictures = evaluate(batch, augment.EvalOptions(resize, crop))
    for got, levels in zip(np.asarray(pictures), as_image(batch)["image"], strict=True):
        expected = pillow_resize((levels.astype(np.float32) - 128) / 128, resize)
        expected = expected[edge : edge + crop, edge : edge + crop]
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_whole_crop_resizes_as_pillow_does():
    batch = draw(rows=2)
    pictures = train(batch, augment.AugmentOptions(CROP), keys_of(batch))
    for got, levels in zip(np.asarray(pictures), as_image(batch)["image"], strict=True):
        expected = pillow_resize((levels.astype(np.float32) - 128) / 128, CROP)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_random_crops_lie_in_the_picture_and_fill_their_ranges():
    rows = 600
    keys = augment.example_keys(0, 0, jnp.arange(rows, dtype=jnp.uint32))
    # All crops are magnified: a filter wider than a pixel would bend the ramps.
    options = augment.AugmentOptions(48, crop_area=(0.25, 0.5), crop_aspect=1.5)
    first, length = extents(augment.random_resized_crop(ramps(rows), options, keys), 48)
    assert first.min() > -0.001
    assert (first + length).max() < SIDE + 0.001
    area = length.prod(axis=1) / SIDE**2
    log_aspect = np.log(length[:, 1] / length[:, 0]) / np.log(1.5)
    place = first / (SIDE - length)
    for sample, low, high in (
        (area, 0.25, 0.5),
        (log_aspect, -1, 1),
        (place[:, 0], 0, 1),
        (place[:, 1], 0, 1),
    ):
        assert scipy.stats.kstest(sample, "uniform", (low, high - low)).pvalue > 1e-3


def test_half_of_the_pictures_are_mirrored():
    rows = 400
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[:, None], (rows, SIDE, SIDE, 3))
    options = augment.AugmentOptions(SIDE, flip=True)
    batch = {"image": ramp.transpose(0, 2, 1, 3), "id_hash": np.arange(rows, dtype=np.uint32)}
    pictures = np.asarray(train(batch, options, keys_of(batch))) * 128 + 128
    np.testing.assert_array_equal(pictures, batch["image"])  # top to bottom nothing changes
    batch["image"] = ramp
    pictures = np.asarray(train(batch, options, keys_of(batch))) * 128 + 128
    mirrored = pictures[:, 0, 0, 0] == SIDE - 1
    assert 140 < mirrored.sum() < 260
    np.testing.assert_array_equal(pictures[mirrored][:, :, ::-1], batch["image"][mirrored])
    np.testing.assert_array_equal(pictures[~mirrored], batch["image"][~mirrored])


def test_each_jitter_changes_what_it_says():
    colors = palette.centre(jnp.asarray(draw(rows=8)["palette"])) * 0.4  # far from the clipping
    keys = augment.example_keys(0, 0, jnp.arange(8, dtype=jnp.uint32))

    def jittered(**ranges):
        return np.asarray(augment.jitter(colors, augment.AugmentOptions(CROP, **ranges), keys))

    shift = jittered(brightness=0.1) - np.asarray(colors)
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-6
    assert 0.05 < np.abs(shift).max() <= 0.2  # 0.1 of a range of 2
    away = np.where(colors == 0, np.nan, colors)  # middle gray says nothing about a factor
    factor = jittered(contrast=0.3) / away
    assert (np.nanmax(factor, axis=(1, 2)) - np.nanmin(factor, axis=(1, 2))).max() < 1e-4
    assert 0.1 < np.nanmax(np.abs(factor - 1)) <= 0.3001
    saturated = jittered(saturation=0.5)
    luma = np.array(augment.LUMA)
    np.testing.assert_allclose(saturated @ luma, np.asarray(colors) @ luma, atol=1e-6)
    assert np.abs(saturated - np.asarray(colors)).max() > 0.02
    assert np.abs(jittered(brightness=1.0, contrast=1.0)).max() <= 1


def test_palette_noise_has_its_deviation():
    batch = draw(rows=64, colors=32, side=4)
    batch["indices"] = np.broadcast_to(np.arange(16, dtype=np.uint8).reshape(4, 4), (64, 4, 4))
    options = augment.AugmentOptions(4, palette_noise=3.0)
    noisy = np.asarray(train(batch, options, keys_of(batch)))
    noise = (noisy - np.asarray(evaluate(batch, augment.EvalOptions(4, 4)))) * 128
    assert abs(noise.std() - 3) < 0.15
    assert abs(noise.mean()) < 0.25


def mixed(options, pictures, targets, batch):
    out, target = mix(pictures, targets, options, keys_of(batch))
    return np.asarray(out), np.asarray(target)


def test_mixup_mixes_pictures_and_targets_alike():
    batch = draw(rows=32)
    pictures = as_image(batch)["image"].astype(np.float32)
    targets = np.eye(32, dtype=np.float32)
    options = augment.AugmentOptions(SIDE, mixup=0.5)
    out, target = mixed(options, pictures, targets, batch)
    for row in range(32):
        partner = row // 8 * 8 + 7 - row % 8
        share = target[row, row]
        expected = share * pictures[row] + (1 - share) * pictures[partner]
        np.testing.assert_allclose(out[row], expected, atol=1e-3)
        np.testing.assert_allclose(target[row, partner], 1 - share, atol=1e-6)
    assert len(np.unique(target.max(axis=1))) > 20


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    batch = draw(rows=32)
    own = np.arange(32, dtype=np.float32)
    pictures = np.broadcast_to(own[:, None, None, None], (32, SIDE, SIDE, 3))
    out, target = mixed(
        augment.AugmentOptions(SIDE, cutmix=1.0), pictures, np.eye(32, dtype=np.float32), batch
    )
    pasted_rows = 0
    for row in range(32):
        pasted = out[row, :, :, 0] != row
        assert set(np.unique(out[row])) <= {row, row // 8 * 8 + 7 - row % 8}
        rectangle = np.outer(pasted.any(axis=1), pasted.any(axis=0))
        np.testing.assert_array_equal(pasted, rectangle)
        np.testing.assert_allclose(target[row, row], 1 - pasted.mean(), atol=1e-6)
        pasted_rows += pasted.any()
    assert pasted_rows > 24


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_mixing_weights_are_beta(alpha):
    rows = 2000
    batch = {"id_hash": np.arange(rows, dtype=np.uint32)}
    pictures = np.zeros((rows, 1, 1, 3), np.float32)
    targets = np.zeros((rows, 1), np.float32)
    targets[:4], targets[4:8] = 1, 0
    targets = np.tile(targets[:8], (rows // 8, 1))  # rows 0 to 3 are mixed with 7 to 4
    _, target = mixed(augment.AugmentOptions(1, mixup=alpha), pictures, targets, batch)
    share = np.where(targets > 0, target, 1 - target)[:, 0]
    assert scipy.stats.kstest(share, "beta", (alpha, alpha)).pvalue > 1e-3


def test_both_mixings_share_the_pictures():
    batch = draw(rows=64)
    targets = np.eye(64, dtype=np.float32)
    pictures = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None, None], (64, 8, 8, 3))
    out, target = mixed(augment.AugmentOptions(8, mixup=1.0, cutmix=1.0), pictures, targets, batch)
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-6)
    blended = [len(np.unique(out[row])) == 1 and out[row, 0, 0, 0] % 1 != 0 for row in range(64)]
    assert 15 < sum(blended) < 49


def test_no_group_reaches_over_hosts():
    rows = 64
    batch = draw(rows=rows)
    pictures = as_image(batch)["image"].astype(np.float32)
    targets = np.eye(rows, dtype=np.float32)
    options = augment.AugmentOptions(SIDE, mixup=0.5, cutmix=1.0)
    whole, whole_targets = mixed(options, pictures, targets, batch)
    for hosts in (2, 4):
        for mine in np.split(np.arange(rows), hosts):
            part = {name: value[mine] for name, value in batch.items()}
            out, target = mixed(options, pictures[mine], targets[mine], part)
            np.testing.assert_allclose(out, whole[mine], atol=1e-4)
            np.testing.assert_allclose(target, whole_targets[mine], atol=1e-6)


def test_no_mixing_leaves_the_batch_alone():
    pictures, targets = jnp.ones((3, 2, 2, 3)), jnp.ones((3, 4))
    keys = augment.example_keys(0, 0, jnp.arange(3, dtype=jnp.uint32))
    out = augment.mix(pictures, targets, augment.AugmentOptions(2), keys)
    assert out[0] is pictures
    assert out[1] is targets


def test_rows_that_make_no_groups():
    with pytest.raises(ValueError, match="batch of 12 rows.*multiple of 8"):
        mixed(augment.AugmentOptions(2, mixup=1.0), np.zeros((12, 2, 2, 3)), np.zeros((12, 1)),
              {"id_hash": np.zeros(12, np.uint32)})  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"crop_size": 0}, "crop_size is 0"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_area": (0.9, 0.5)}, "crop_area"),
        ({"crop_aspect": 0.5}, "crop_aspect"),
        ({"contrast": 1.5}, "contrast is 1.5"),
        ({"mixup": -1.0}, "mixup is -1.0"),
    ],
)
def test_impossible_options(options, word):
    with pytest.raises(ValueError, match=word):
        augment.AugmentOptions(**{"crop_size": CROP, **options})


def test_impossible_evaluation():
    with pytest.raises(ValueError, match="crop_size is 40 and resize 32"):
        augment.EvalOptions(resize=32, crop_size=40)


def test_bfloat16_stays_bfloat16():
    batch = draw()
    keys = keys_of(batch)
    pictures = train(batch, ALL, keys, jnp.bfloat16)
    assert pictures.dtype == jnp.bfloat16
    out, targets = mix(pictures, np.eye(16, dtype=np.float32), ALL, keys)
    assert (out.dtype, targets.dtype) == (jnp.bfloat16, jnp.float32)
    exact = train(batch, ALL, keys)
    # Two roundings to 8 bits, of weights and of colours.
    np.testing.assert_allclose(np.asarray(pictures, np.float32), exact, atol=0.03)


@pytest.mark.parametrize("hashes", [np.array([0, 1], np.uint32)])
def test_keys_take_traced_steps(hashes):
    traced = jax.jit(augment.example_keys)(1, 2, hashes)
    plain = augment.example_keys(1, 2, hashes)
    assert (jax.random.key_data(traced) == jax.random.key_data(plain)).all()
