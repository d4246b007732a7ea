import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.data.augmentation import crop_and_flip

PADDING = 3


@pytest.fixture(params=[np.uint8, np.float32])
def images(request) -> np.ndarray:
    """No pixel is 0, so that padding can be told apart."""
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (2000, 6, 7, 3)).astype(request.param)


def places(images: np.ndarray, cropped: np.ndarray) -> np.ndarray:
    """How often the crop of each place, mirrored or not, is what came out, (2, rows, columns)."""
    height, width = images.shape[1:3]
    padded = np.pad(images, [(0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)])
    size = 2 * PADDING + 1
    counts = np.zeros((2, size, size), int)
    for top, left in itertools.product(range(size), range(size)):
        window = padded[:, top : top + height, left : left + width]
        for mirrored, candidate in enumerate((window, window[:, :, ::-1])):
            counts[mirrored, top, left] = (candidate == cropped).all((1, 2, 3)).sum()
    return counts


def test_every_image_is_a_window_of_the_padded_one_and_half_are_mirrored(images):
    cropped = np.asarray(crop_and_flip(jax.random.key(0), images, padding=PADDING))
    assert cropped.dtype == images.dtype
    counts = places(images, cropped)
    # The images are random: none equals another crop of itself.
    assert counts.sum() == len(images)
    # Binomial counts, within four and a half standard deviations.
    for observed in (counts.sum((1, 2)), counts.sum((0, 2)), counts.sum((0, 1))):
        p = 1 / len(observed)
        np.testing.assert_allclose(
            observed, p * len(images), atol=4.5 * np.sqrt(len(images) * p * (1 - p))
        )


def test_row_column_and_mirror_are_drawn_independently(images):
    counts = places(images, np.asarray(crop_and_flip(jax.random.key(1), images, padding=PADDING)))
    expected = len(images) / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()  # χ² with 97 degrees of freedom
    assert 40 < statistic < 160


def test_either_can_be_left_out(images):
    key = jax.random.key(2)
    cropped = np.asarray(crop_and_flip(key, images, padding=PADDING, flip=False))
    assert places(images, cropped)[1].sum() == 0
    mirrored = (np.asarray(crop_and_flip(key, images, padding=0)) != images).any((1, 2, 3))
    assert 0.45 < mirrored.mean() < 0.55
    np.testing.assert_array_equal(crop_and_flip(key, images, padding=0, flip=False), images)


def test_the_same_key_gives_the_same_images_alone_and_mapped_in_a_scan(images):
    keys = jax.random.split(jax.random.key(3), 2)
    batch = jnp.asarray(images[:50])

    def epoch(key: jax.Array) -> jax.Array:
        def step(carry: None, number: jax.Array) -> tuple[None, jax.Array]:
            return carry, crop_and_flip(jax.random.fold_in(key, number), batch)

        return jax.lax.scan(step, None, jnp.arange(3))[1]

    mapped = jax.jit(jax.vmap(epoch))(keys)
    for (i, key), number in itertools.product(enumerate(keys), range(3)):
        alone = crop_and_flip(jax.random.fold_in(key, number), batch)
        np.testing.assert_array_equal(mapped[i, number], alone)
    assert (np.asarray(mapped[0, 0]) != np.asarray(mapped[1, 0])).any((1, 2, 3)).mean() > 0.9
