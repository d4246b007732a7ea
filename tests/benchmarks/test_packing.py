import numpy as np
import pytest

from benchmarks import data
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import packing


@pytest.fixture
def arrays():
    """Two and a bit of mosaics."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2100, 4, 4, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    return images, rng.integers(0, 10, 2100).astype(np.uint8)


@pytest.fixture
def folders(arrays, tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    packing.pack_arrays(*arrays, *folders)
    return folders


def test_unpacking_gives_every_pixel_back(arrays, folders, tmp_path):
    assert [len(list(folder.glob("*.webp"))) for folder in folders] == [2, 1]
    packing.unpack(tmp_path / "new" / "cifar10.npz", *folders)
    with np.load(tmp_path / "new" / "cifar10.npz") as file:
        for name, expected in zip(("images", "labels"), arrays, strict=True):
            np.testing.assert_array_equal(file[name], expected)


def test_nothing_is_written_unless_all_images_are_there_and_whole(folders, tmp_path):
    target = tmp_path / "cifar10.npz"
    with pytest.raises(BenchmarkError, match="2048 images for 2100 labels: a folder is missing"):
        packing.unpack(target, folders[0])
    one, other = sorted(folders[0].glob("*.webp"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(BenchmarkError, match=r"the images in .* are damaged"):
        packing.unpack(target, *folders)
    assert not target.exists()


def test_cifar_is_read_from_the_file_where_there_is_one(tmp_path):
    labels = np.arange(60_000, dtype=np.uint8) % 10
    images = np.zeros((60_000, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = labels
    np.savez(tmp_path / "cifar10.npz", images=images, labels=labels)
    dataset = data.load("cifar10", tmp_path)
    splits = dataset.train, dataset.validation, dataset.test
    assert [len(split) for split in splits] == [47_500, 2_500, 10_000]
    for split in splits:
        np.testing.assert_array_equal(split.inputs[:, 0, 0, 0], split.targets)


def test_a_file_of_something_else_is_one_clear_error(arrays, tmp_path):
    images, labels = arrays
    np.savez(tmp_path / "cifar10.npz", images=images, labels=labels)
    with pytest.raises(BenchmarkError, match="does not hold the 60,000 images of CIFAR-10"):
        data.load("cifar10", tmp_path)
    (tmp_path / "cifar10.npz").write_bytes(b"no archive")
    with pytest.raises(BenchmarkError, match=r"cifar10\.npz cannot be read .*: unpack it again"):
        data.load("cifar10", tmp_path)
