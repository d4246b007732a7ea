import functools
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from benchmarks import data
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset, Split

MNIST_DIR = Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (MNIST_DIR / name).is_dir(), reason=f"no tfds {name} in {MNIST_DIR}; set TFDS_DATA_DIR"
    )


needs_mnist = needs("mnist")


def damage_mnist(folder: Path, damage: str) -> None:
    """Copy MNIST to ``folder`` and spoil it."""
    shutil.copytree(MNIST_DIR / "mnist", folder / "mnist", copy_function=shutil.copyfile)
    record = next((folder / "mnist").rglob("mnist-train*"))
    if damage == "empty":
        shutil.rmtree(folder / "mnist")
        (folder / "mnist").mkdir()
    elif damage == "truncated":
        record.write_bytes(record.read_bytes()[: 1 << 20])
    elif damage == "overwritten":
        content = bytearray(record.read_bytes())
        content[1 << 22 : (1 << 22) + 1000] = bytes(1000)
        record.write_bytes(content)
    elif damage == "removed":
        record.unlink()
    else:
        (record.parent / "dataset_info.json").unlink()


@pytest.fixture(autouse=True)
def images_are_read_once(monkeypatch):
    """Decoding 60,000 images takes seconds; damaged copies have folders of their own."""
    monkeypatch.setattr("benchmarks.data.datasets.read_prepared", _read_once)


def _read_once(name: str, split: str, data_dir: Path | None) -> Split:
    if data_dir != MNIST_DIR:
        return data.read_prepared(name, split, data_dir)
    return _cached(name, split)


@functools.cache
def _cached(name: str, split: str) -> Split:
    return data.read_prepared(name, split, MNIST_DIR)


def test_digits_are_whole_and_split_without_overlap():
    digits = data.load("digits")
    sizes = [len(split) for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [1300, 137, 360]
    images = np.concatenate([s.inputs for s in (digits.train, digits.validation, digits.test)])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    # The 1,797 images are all different, so that no image can be in two splits.
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797


def test_digits_have_the_stated_mean_and_deviation():
    digits = data.load("digits")
    images = np.concatenate([s.inputs for s in (digits.train, digits.validation, digits.test)])
    np.testing.assert_allclose((images / 255).mean(), digits.mean, atol=1e-4)
    np.testing.assert_allclose((images / 255).std(), digits.std, atol=1e-4)


def test_the_split_is_the_same_each_time():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.validation.inputs, second.validation.inputs)


def test_held_out_images_are_no_more_for_training():
    digits = data.load("digits")
    fewer = digits.hold_out(63)
    assert [len(split) for split in (fewer.train, fewer.validation, fewer.test)] == [1237, 200, 360]
    for name in ("inputs", "targets"):
        before, after = (
            np.concatenate([getattr(split, name) for split in splits])
            for splits in ((digits.validation, digits.train), (fewer.validation, fewer.train))
        )
        np.testing.assert_array_equal(before[:137], after[:137])
        np.testing.assert_array_equal(before[-63:], after[137:200])
        np.testing.assert_array_equal(before[137:-63], after[200:])


def test_normalize_scales_bytes_but_not_floats():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    split = Split(images, np.zeros(2, np.int32))
    dataset = Dataset("fake", split, split, split, mean=tuple(mean), std=tuple(std))
    normalize = jax.jit(dataset.normalize)
    for inputs in (images, np.float32(images / 255)):
        normalized = normalize(inputs)
        assert normalized.dtype == np.float32
        np.testing.assert_allclose(normalized, (images / 255 - mean) / std, atol=1e-6)


def test_unknown_dataset_names_the_known_ones():
    with pytest.raises(BenchmarkError, match=r"unknown dataset 'imagenet'.*digits, .*mnist_noisy"):
        data.load("imagenet")


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(BenchmarkError, match=r"mnist was not found in .*--data-dir.*tfds build"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        pytest.param("mnist", (57_000, 3_000), (28, 28, 1), marks=needs("mnist")),
        pytest.param(
            "fashion_mnist",
            (57_000, 3_000),
            (28, 28, 1),
            marks=[needs("fashion_mnist"), pytest.mark.slow],
        ),
        pytest.param(
            "cifar10", (47_500, 2_500), (32, 32, 3), marks=[needs("cifar10"), pytest.mark.slow]
        ),
    ],
)
def test_sizes_are_those_of_the_paper_and_statistics_the_stated_ones(name, sizes, shape):
    dataset = data.load(name, MNIST_DIR)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert tuple(len(split) for split in splits) == (*sizes, 10_000)
    for split in splits:
        assert split.inputs.shape[1:] == shape
        assert split.inputs.dtype == np.uint8
        assert split.targets.dtype == np.int32
        np.testing.assert_allclose(np.bincount(split.targets) / len(split), 0.1, atol=0.015)
    if name == "mnist":
        labels = np.concatenate([dataset.train.targets, dataset.validation.targets])
        known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        np.testing.assert_array_equal(np.bincount(labels), known)
    # Sums over the 256 values that a byte takes are exact, and need no float copy of the images.
    images = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    counts = np.stack([np.bincount(x.ravel(), minlength=256) for x in np.moveaxis(images, -1, 0)])
    values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    np.testing.assert_allclose(np.ravel(dataset.mean), mean, atol=6e-5)
    np.testing.assert_allclose(
        np.ravel(dataset.std), np.sqrt(weights @ values**2 - mean**2), atol=6e-5
    )


@needs_mnist
@pytest.mark.parametrize("name", ["mnist_noisy", "mnist_blurred"])
def test_targets_of_corrupted_images_are_the_clean_ones(name):
    mnist, corrupted = data.load("mnist", MNIST_DIR), data.load(name, MNIST_DIR)
    for plain, split in zip(
        (mnist.train, mnist.validation, mnist.test),
        (corrupted.train, corrupted.validation, corrupted.test),
        strict=True,
    ):
        assert split.inputs.dtype == split.targets.dtype == np.float32
        assert split.inputs.shape == plain.inputs.shape
        np.testing.assert_array_equal(np.rint(split.targets * 255).astype(np.uint8), plain.inputs)
        assert split.targets.max() == 1
    assert (corrupted.mean, corrupted.std) == (mnist.mean, mnist.std)


@needs_mnist
def test_noise_is_normal_independent_and_the_same_each_time():
    noisy = data.load("mnist_noisy", MNIST_DIR)
    np.testing.assert_array_equal(
        data.load("mnist_noisy", MNIST_DIR).validation.inputs, noisy.validation.inputs
    )
    noise = {
        name: getattr(noisy, name).inputs - getattr(noisy, name).targets
        for name in ("train", "validation", "test")
    }
    for x in noise.values():
        # Five standard errors of mean and deviation.
        np.testing.assert_allclose(x.mean(dtype=np.float64), 0, atol=5 * 0.05 / np.sqrt(x.size))
        np.testing.assert_allclose(
            x.std(dtype=np.float64), 0.05, atol=5 * 0.05 / np.sqrt(2 * x.size)
        )
    assert scipy.stats.kstest(noise["test"][:100].ravel() / 0.05, "norm").pvalue > 0.01
    # No two images share their noise, within a split or across: correlation 0 ± 1/28.
    sample = np.concatenate([x[:40] for x in noise.values()]).reshape(120, -1)
    assert np.abs(np.corrcoef(sample) - np.eye(120)).max() < 6 / 28


@needs_mnist
def test_blur_is_the_published_kernel_before_the_noise(monkeypatch):
    blurred_and_noisy = data.load("mnist_blurred", MNIST_DIR).test
    monkeypatch.setattr("benchmarks.data.datasets._NOISE_STD", 0.0)
    blurred = data.load("mnist_blurred", MNIST_DIR).test
    offsets = np.arange(-4, 5)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 5.0**2))
    kernel /= kernel.sum()
    for i in range(20):
        expected = scipy.signal.convolve2d(blurred.targets[i, :, :, 0], kernel, mode="same")
        np.testing.assert_allclose(blurred.inputs[i, :, :, 0], expected, atol=1e-6)
    noise = blurred_and_noisy.inputs - blurred.inputs
    np.testing.assert_allclose(noise.std(dtype=np.float64), 0.05, atol=1e-4)


@needs_mnist
@pytest.mark.parametrize(
    "damage", ["truncated", "overwritten", "removed", "no description", "empty"]
)
def test_damaged_data_is_one_clear_error(tmp_path, damage):
    damage_mnist(tmp_path, damage)
    with pytest.raises(BenchmarkError, match=r"cannot be read .*prepare it again") as caught:
        data.load("mnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_other_file_formats_are_told_with_the_command_for_the_right_one(tmp_path):
    (tmp_path / "mnist").mkdir()  # tfds takes it for its default format
    advice = f"tfds build mnist --data_dir={tmp_path} --file_format=array_record"
    with pytest.raises(BenchmarkError, match=f"TFRECORD.*prepare it again with .*{advice}"):
        data.load("mnist", tmp_path)


def test_the_first_images_of_each_split():
    whole = data.load("digits")
    part = whole.first(50, 20)
    assert (len(part.train), len(part.validation), len(part.test)) == (50, 20, 20)
    np.testing.assert_array_equal(part.train.inputs, whole.train.inputs[:50])
    np.testing.assert_array_equal(part.test.targets, whole.test.targets[:20])
    assert (part.mean, part.std) == (whole.mean, whole.std)


def test_all_images_for_training_leave_the_first_test_images_to_look_at():
    whole = data.load("digits")
    joined = whole.all_for_training()
    assert len(joined.train) == len(whole.train) + len(whole.validation)
    inputs, targets = whole.validation[:]
    np.testing.assert_array_equal(joined.train.inputs[len(whole.train) :], inputs)
    np.testing.assert_array_equal(joined.train.targets[len(whole.train) :], targets)
    np.testing.assert_array_equal(joined.validation.inputs, whole.test.inputs[: len(targets)])
    np.testing.assert_array_equal(joined.test.targets, whole.test.targets)


def test_windows_of_characters_and_those_that_follow():
    help_texts = data.load("python_help")
    for split in (help_texts.train, help_texts.validation, help_texts.test):
        inputs, targets = split[:]
        assert inputs.shape == targets.shape == (len(split), 64)
        np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
        assert inputs.dtype == np.int32
        assert 0 <= inputs.min() <= inputs.max() < 128
    # The test windows are one text.
    inputs, targets = help_texts.test[:]
    np.testing.assert_array_equal(inputs[1:, 0], targets[:-1, -1])
    text = "".join(map(chr, inputs.ravel()))
    assert " statement " in text
    tokens = np.arange(5, dtype=np.int32)
    np.testing.assert_array_equal(help_texts.normalize(jax.numpy.asarray(tokens)), tokens)
