"""Datasets, always split in the same way."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import packing
from benchmarks.data.prepared import Split, default_folder, read_prepared

_SPLIT_SEED = 42
_NOISE_SEED = 0
_NOISE_STD = 0.05
_WINDOW = 64  # characters


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training, validation and test images; ``mean`` and ``std`` are of pixels in [0, 1]."""

    name: str
    train: Split
    validation: Split
    test: Split
    mean: float | tuple[float, ...]
    """of the training and validation images before any corruption; a tuple has one per channel"""
    std: float | tuple[float, ...]
    """like ``mean``, the standard deviation"""
    classes: int = 10

    def first(self, training: int | None, others: int | None) -> "Dataset":
        """The first images of each split, for trials; None means all of them."""
        return dataclasses.replace(
            self,
            train=Split(*self.train[:training]),
            validation=Split(*self.validation[:others]),
            test=Split(*self.test[:others]),
        )

    def all_for_training(self) -> "Dataset":
        """The dataset with the validation images among the training images.

        The learning curve then shows test images in their place. Use it only where nothing is
        chosen by the validation images.
        """
        train = Split(*map(np.concatenate, zip(self.train[:], self.validation[:], strict=True)))
        shown = Split(*self.test[: len(self.validation)])
        return dataclasses.replace(self, train=train, validation=shown)

    def hold_out(self, images: int) -> "Dataset":
        """The dataset with that many of its training images, the last ones, for validation too."""
        kept = len(self.train) - images
        validation = zip(self.validation[:], self.train[kept:], strict=True)
        return dataclasses.replace(
            self,
            train=Split(*self.train[:kept]),
            validation=Split(*map(np.concatenate, validation)),
        )

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """(x − mean) / std in float32, where x is ``inputs`` scaled to [0, 1] if they are uint8.

        Tokens, which are int32, stay as they are.
        """
        if inputs.dtype == jnp.int32:
            return inputs
        pixels = inputs.astype(jnp.float32)
        if inputs.dtype == jnp.uint8:
            pixels = pixels / 255
        return (pixels - jnp.float32(self.mean)) / jnp.float32(self.std)


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a dataset by name.

    ``digits`` is part of scikit-learn, ``python_help`` part of Python. ``mnist``, ``fashion_mnist``
    and ``cifar10`` are prepared by tfds; 5 % of their training images are kept for validation. In
    ``mnist_noisy`` and ``mnist_blurred`` the inputs are corrupted images and the targets the clean
    ones, both float32; the corruption of an image is always the same.

    Args:
      name: which dataset.
      data_dir: where tfds keeps its prepared data; by default ``$TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.

    Returns:
        The `Dataset`; the split into training and validation images is always the same.

    Raises:
        BenchmarkError: if the name is unknown or the data missing or damaged.
    """
    if name not in _RECIPES:
        known = ", ".join(sorted(_RECIPES))
        raise BenchmarkError(f"unknown dataset {name!r}; there are: {known}.")
    recipe = _RECIPES[name]
    whole, test = recipe.read(data_dir)
    training, validation = _stratified(whole.targets, recipe.validation)
    splits = [Split(*whole[training]), Split(*whole[validation]), test]
    if recipe.corrupt:
        rng = np.random.default_rng(_NOISE_SEED)
        clean = [split.inputs.astype(np.float32) / 255 for split in splits]
        splits = [Split(recipe.corrupt(images, rng), images) for images in clean]
    return Dataset(name, *splits, mean=recipe.mean, std=recipe.std)


def _stratified(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training, and ``size`` held-out ones with classes (if any) in proportion."""
    rest, held_out = train_test_split(
        np.arange(len(labels)),
        test_size=size,
        random_state=_SPLIT_SEED,
        stratify=labels if labels.ndim == 1 else None,
    )
    return np.sort(rest), np.sort(held_out)


def _digits(data_dir: Path | None) -> tuple[Split, Split]:
    """1,797 handwritten digits of 8×8 pixels (Alpaydin, Kaynak 1998)."""
    del data_dir
    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    whole = Split(images, bunch.target.astype(np.int32))
    rest, test = _stratified(whole.targets, 360)
    return Split(*whole[rest]), Split(*whole[test])


def _python_help(data_dir: Path | None) -> tuple[Split, Split]:
    """The texts of Python's ``help()``, in windows of characters; the target is the next character.

    The last tenth is for tests. Characters are ASCII codes; all others become 127.
    """
    del data_dir
    text = "".join(topics[name] for name in sorted(topics))
    codes = np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), 127).astype(np.int32)
    count = (len(codes) - 1) // _WINDOW
    inputs = codes[: count * _WINDOW].reshape(count, _WINDOW)
    targets = codes[1 : count * _WINDOW + 1].reshape(count, _WINDOW)
    cut = count * 9 // 10
    return Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:])


def _prepared(name: str, data_dir: Path | None) -> tuple[Split, Split]:
    """The training and test images of a dataset that tfds has prepared."""
    return read_prepared(name, "train", data_dir), read_prepared(name, "test", data_dir)


def _cifar10(data_dir: Path | None) -> tuple[Split, Split]:
    """From the file that `benchmarks.data.packing` makes, if there is one; else from tfds."""
    packed = (data_dir or default_folder()) / "cifar10.npz"
    if packed.is_file():
        return packing.read(packed)
    return _prepared("cifar10", data_dir)


def _noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise added, not clipped.

    The standard deviation, 0.05, is that of the authors' Skip-Encoder notebook.
    """
    return images + _NOISE_STD * rng.standard_normal(images.shape, np.float32)


def _blurred(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurred by a Gaussian of σ = 5 cut to 9×9 pixels (zeros outside the image), then noisy.

    The authors' Skip-Encoder notebook does the same: it adds noise in both tasks.
    """
    smooth = scipy.ndimage.gaussian_filter(images, sigma=5, radius=4, axes=(1, 2), mode="constant")
    return _noisy(smooth, rng)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How a dataset is made."""

    read: Callable[[Path | None], tuple[Split, Split]]
    """training and test images; the former include those for validation"""
    validation: int
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    corrupt: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


_MNIST = _Recipe(functools.partial(_prepared, "mnist"), 3000, mean=0.1307, std=0.3081)
_RECIPES = {
    "mnist": _MNIST,
    "mnist_noisy": dataclasses.replace(_MNIST, corrupt=_noisy),
    "mnist_blurred": dataclasses.replace(_MNIST, corrupt=_blurred),
    "fashion_mnist": _Recipe(
        functools.partial(_prepared, "fashion_mnist"), 3000, mean=0.2860, std=0.3530
    ),
    "cifar10": _Recipe(_cifar10, 2500, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "digits": _Recipe(_digits, 137, mean=0.3053, std=0.3759),
    "python_help": _Recipe(_python_help, 300, mean=0.0, std=1.0),
}
