"""CIFAR-10 for a machine without network: losslessly packed into folders, to be copied one by one.

    python -m benchmarks.data.packing pack FOLDER...
    python -m benchmarks.data.packing unpack cifar10.npz FOLDER...

1,024 images make a mosaic, a lossless WebP file. All 60,000 images take 97 MiB; as single PNG files
they take 138 MiB. `benchmarks.data` reads ``cifar10.npz`` from the folder of the datasets, if it is
there.
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from benchmarks.cli.errors import BenchmarkError
from benchmarks.data.prepared import Split, read_prepared

_SIDE = 32
"""images in a row of a mosaic, and pixels in a row of an image"""


def pack(*folders: Path, data_dir: Path | None = None) -> None:
    """Spread the images of CIFAR-10, as tfds has prepared them, evenly over the folders."""
    splits = [read_prepared("cifar10", split, data_dir) for split in ("train", "test")]
    images = np.concatenate([split.inputs for split in splits])
    labels = np.concatenate([split.targets for split in splits]).astype(np.uint8)
    pack_arrays(images, labels, *folders)


def pack_arrays(images: np.ndarray, labels: np.ndarray, *folders: Path) -> None:
    """Pack images (n, 32, 32, 3) and labels (n,), both uint8; each folder gets all labels."""
    count = -(-len(images) // _SIDE**2)

    def encode(index: int) -> None:
        folder = folders[index * len(folders) // count]
        buffer = io.BytesIO()
        mosaic = _to_mosaic(images[index * _SIDE**2 : (index + 1) * _SIDE**2])
        mosaic.save(buffer, "WEBP", lossless=True, quality=100, method=3)
        (folder / f"{index:03d}.webp").write_bytes(buffer.getvalue())

    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "labels.npy", labels)
        (folder / "sha256").write_text(_checksum(images, labels))
    with ThreadPoolExecutor() as pool:
        list(pool.map(encode, range(count)))


def unpack(target: Path, *folders: Path) -> None:
    """Write ``target``, an npz file of images and labels, if all of them are there."""
    paths = sorted((p for f in folders for p in f.glob("*.webp")), key=lambda path: path.name)
    labels = np.load(folders[0] / "labels.npy")
    with ThreadPoolExecutor() as pool:
        mosaics = list(pool.map(_from_mosaic, paths))
    images = np.concatenate(mosaics)[: len(labels)] if mosaics else np.zeros((0,), np.uint8)
    if len(images) != len(labels):
        raise BenchmarkError(f"{len(images)} images for {len(labels)} labels: a folder is missing.")
    if _checksum(images, labels) != (folders[0] / "sha256").read_text().strip():
        raise BenchmarkError(f"the images in {', '.join(map(str, folders))} are damaged.")
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(target, images=images, labels=labels)


def read(path: Path) -> tuple[Split, Split]:
    """The 50,000 training and 10,000 test images of a file that `unpack` has written."""
    try:
        with np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"].astype(np.int32)
    except Exception as error:
        raise BenchmarkError(f"{path} cannot be read ({error}): unpack it again.") from error
    if images.shape != (60_000, 32, 32, 3) or labels.shape != (60_000,):
        raise BenchmarkError(f"{path} does not hold the 60,000 images of CIFAR-10.")
    return Split(images[:50_000], labels[:50_000]), Split(images[50_000:], labels[50_000:])


def _to_mosaic(images: np.ndarray) -> Image.Image:
    full = np.zeros((_SIDE**2, _SIDE, _SIDE, 3), np.uint8)
    full[: len(images)] = images
    grid = full.reshape(_SIDE, _SIDE, _SIDE, _SIDE, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(_SIDE * _SIDE, _SIDE * _SIDE, 3))


def _from_mosaic(path: Path) -> np.ndarray:
    grid = np.asarray(Image.open(path).convert("RGB")).reshape(_SIDE, _SIDE, _SIDE, _SIDE, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, _SIDE, _SIDE, 3)


def _checksum(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"pack": pack, "unpack": unpack})
