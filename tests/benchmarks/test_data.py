import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data
from benchmarks.errors import BenchmarkError

MNIST_DIR = Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))
needs_mnist = pytest.mark.skipif(
    not (MNIST_DIR / "mnist").is_dir(), reason=f"no tfds MNIST in {MNIST_DIR}; set TFDS_DATA_DIR"
)


def test_digits_are_whole_and_split_without_overlap():
    digits = data.load("digits")
    sizes = [len(split.labels) for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [1300, 137, 360]
    images = np.concatenate([s.images for s in (digits.train, digits.validation, digits.test)])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    # The 1,797 images are all different, so that no image can be in two splits.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_digits_have_the_stated_mean_and_deviation():
    digits = data.load("digits")
    images = np.concatenate([s.images for s in (digits.train, digits.validation, digits.test)])
    np.testing.assert_allclose((images / 255).mean(), digits.mean, atol=1e-4)
    np.testing.assert_allclose((images / 255).std(), digits.std, atol=1e-4)


def test_the_split_is_the_same_each_time():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.validation.images, second.validation.images)


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(BenchmarkError, match=r"unknown dataset 'imagenet'.*digits, mnist"):
        data.load("imagenet")


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(BenchmarkError, match=r"mnist was not found in .*--data-dir.*tfds build"):
        data.load("mnist", tmp_path)


@needs_mnist
def test_mnist_has_the_sizes_of_the_paper_and_the_stated_statistics():
    mnist = data.load("mnist", MNIST_DIR)
    sizes = [len(split.labels) for split in (mnist.train, mnist.validation, mnist.test)]
    assert sizes == [57_000, 3_000, 10_000]
    assert mnist.train.images.shape[1:] == (28, 28, 1)
    pixels = np.concatenate([mnist.train.images, mnist.validation.images]) / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [0.1307, 0.3081], atol=1e-4)
    labels = np.concatenate([mnist.train.labels, mnist.validation.labels])
    np.testing.assert_array_equal(
        np.bincount(labels), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )


@needs_mnist
@pytest.mark.parametrize("damage", ["truncated", "removed", "no description", "empty"])
def test_damaged_data_is_one_clear_error(tmp_path, damage):
    for source in (MNIST_DIR / "mnist").rglob("*"):
        target = tmp_path / "mnist" / source.relative_to(MNIST_DIR / "mnist")
        if source.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    record = next((tmp_path / "mnist").rglob("mnist-train*"))
    if damage == "empty":
        shutil.rmtree(tmp_path / "mnist")
        (tmp_path / "mnist").mkdir()
    elif damage == "truncated":
        record.write_bytes(record.read_bytes()[: 1 << 20])
    elif damage == "removed":
        record.unlink()
    else:
        (record.parent / "dataset_info.json").unlink()
    with pytest.raises(BenchmarkError, match=r"cannot be read .*prepare it again") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
