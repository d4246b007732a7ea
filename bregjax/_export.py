"""Files without zeros: the non-zero values of a network, and one bit for each entry."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bregjax._leaves import leaf_name
from bregjax._validation import check_array, check_some, shown

_FORMAT = "bregjax"
_VALUES, _MARKS = ".values", ".nonzero"


def save_sparse(path: str | os.PathLike, params: Any) -> int:
    r"""Write parameters to a safetensors file without their zeros.

    An array of n entries of b bytes and density d takes :math:`d\,n\,b + n/8` bytes:
    ``NAME.values`` holds its non-zero entries in row-major order, ``NAME.nonzero`` a bit for each
    entry, the highest bit of a byte first, and the file's metadata its shape. Arrays that would not
    become smaller are written as they are, under ``NAME``. The file is written whole or not at all.

    Args:
      path: of the file.
      params: a tree of arrays; names are those of `leaf_name`.

    Returns:
        The number of bytes in the file.

    Raises:
        ValueError: if two leaves have the same name, or one is called ``bregjax``.
        TypeError: if ``path`` is not a path, or a leaf is not an array of numbers, or of narrower
          ones than safetensors can give back to JAX: float8, int4.
        ModuleNotFoundError: if safetensors is not installed.

    Example:
        >>> import tempfile, pathlib, jax.numpy as jnp, bregjax
        >>> params = {"kernel": jnp.zeros((100, 100)).at[:5].set(1.0), "bias": jnp.ones(100)}
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "network.safetensors"
        >>> print(bregjax.save_sparse(path, params) < 4000)  # of 40,400 bytes
        True
        >>> print(jnp.array_equal(bregjax.load_sparse(path)["kernel"], params["kernel"]))
        True
    """
    from safetensors.flax import save

    _check_path(path)
    check_some("params", params)
    arrays: dict[str, jax.Array] = {}
    metadata = {_FORMAT: "1"}
    for leaf_path, x in jax.tree.leaves_with_path(params):
        name = leaf_name(leaf_path)
        if name in arrays or name + _VALUES in arrays:
            raise ValueError(f"two leaves of params are called {name!r}.")
        if name == _FORMAT:
            raise ValueError(f"a leaf of params is called {name!r}, which marks the file.")
        check_array(f"params{jax.tree_util.keystr(leaf_path)}", x)
        x = jnp.asarray(x)
        if x.dtype.kind not in "biufc" and x.dtype != jnp.bfloat16:
            raise TypeError(f"{name} has dtype {x.dtype}, which load_sparse could not read back.")
        flat = np.asarray(x).reshape(-1)
        nonzero = flat != 0
        marks = np.packbits(nonzero)
        if int(nonzero.sum()) * flat.itemsize + marks.nbytes < flat.nbytes:
            arrays[name + _VALUES] = jnp.asarray(flat[nonzero])
            arrays[name + _MARKS] = jnp.asarray(marks)
            metadata[name] = ",".join(map(str, x.shape))
        else:
            arrays[name] = x
    content = save(arrays, metadata)
    part = f"{os.fspath(path)}.part"
    with open(part, "wb") as file:
        file.write(content)
    os.replace(part, path)
    return len(content)


def load_sparse(path: str | os.PathLike, like: Any = None) -> Any:
    """Read parameters that `save_sparse` wrote, bit for bit but for the signs of zeros.

    Args:
      path: of the file.
      like: a tree with leaves of the same names, such as the parameters of a new network or their
        shapes; None gives a dictionary from names to arrays.

    Returns:
        A tree of the structure of ``like``, or a dictionary.

    Raises:
        ValueError: if `save_sparse` did not write the file, or names or shapes differ from those of
          ``like``.
        TypeError: if ``path`` is not a path.
        ModuleNotFoundError: if safetensors is not installed.

    Example:
        >>> import tempfile, pathlib, jax.numpy as jnp, bregjax
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "network.safetensors"
        >>> size = bregjax.save_sparse(path, {"dense": {"kernel": jnp.eye(30)}})
        >>> shapes = {"dense": {"kernel": jnp.zeros((30, 30))}}
        >>> print(bregjax.load_sparse(path, like=shapes)["dense"]["kernel"].sum())
        30.0
    """
    from safetensors import SafetensorError, safe_open

    _check_path(path)
    try:
        with safe_open(path, framework="flax") as file:
            found = _read(file)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"path must be a file that save_sparse wrote, got path={shown(path)}. ({error})"
        ) from error
    return found if like is None else _in_the_place_of(like, found)


def _read(file: Any) -> dict[str, jax.Array]:
    """The arrays by their names; raises `ValueError` where the parts of one do not fit."""
    metadata = file.metadata() or {}
    if metadata.get(_FORMAT) != "1":
        raise ValueError(f"its metadata do not name {_FORMAT}")
    shapes = {name: text for name, text in metadata.items() if name != _FORMAT}
    parts = {name + part for name in shapes for part in (_VALUES, _MARKS)}
    found = {name: file.get_tensor(name) for name in set(file.keys()) - parts}
    for name, text in shapes.items():
        shape = tuple(map(int, text.split(","))) if text else ()
        values = np.asarray(file.get_tensor(name + _VALUES))
        marks = np.unpackbits(np.asarray(file.get_tensor(name + _MARKS))).astype(bool)
        size = math.prod(shape)
        if len(marks) != 8 * math.ceil(size / 8) or marks.sum() != len(values):
            raise ValueError(
                f"{name} of shape {shape} has {marks.sum()} marks in {len(marks)} bits"
            )
        flat = np.zeros(size, values.dtype)
        flat[marks[:size]] = values
        found[name] = jnp.asarray(flat.reshape(shape))
    return found


def _check_path(path: object) -> None:
    """Raises `TypeError` unless it is a path; `open` would also accept the number of a file."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a path, got path={shown(path)}.")


def _in_the_place_of(like: Any, found: dict[str, jax.Array]) -> Any:
    names = {leaf_name(path): np.shape(x) for path, x in jax.tree.leaves_with_path(like)}
    if set(names) != set(found):
        differing = sorted(set(names) ^ set(found))
        raise ValueError(f"the file and like differ in the leaves {', '.join(differing[:5])}.")
    for name, shape in names.items():
        if found[name].shape != shape:
            raise ValueError(f"{name} has shape {found[name].shape} in the file, {shape} in like.")
    return jax.tree_util.tree_map_with_path(lambda path, _: found[leaf_name(path)], like)
