"""Sparse files: small, and the same bits back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import bregjax


def sparse(shape: tuple[int, ...], density: float, dtype: Any = jnp.float32) -> jax.Array:
    kernel = jax.random.normal(jax.random.key(0), shape, dtype)
    return jnp.where(jax.random.uniform(jax.random.key(1), shape) < density, kernel, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_every_bit_comes_back(tmp_path, dtype):
    params = {
        "conv": {"kernel": sparse((3, 3, 7, 5), 0.1, dtype), "bias": jnp.arange(5.0)},
        "dense": [sparse((11, 13), 0.9, dtype), jnp.zeros((0, 3)), jnp.asarray(2.0, dtype)],
        "zero": jnp.zeros((4, 4), dtype),
        "special": jnp.array([[jnp.nan, jnp.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype),
    }
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, params)
    back = bregjax.load_sparse(path, params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
def test_a_file_is_as_small_as_its_values_and_a_bit_for_each_entry(tmp_path, density):
    params = {f"layer{i}": sparse((300, 400), density) for i in range(3)}
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, params)
    share = float(bregjax.density(params))
    assert path.stat().st_size <= 1.02 * (4 * share + 1 / 8) * 3 * 300 * 400


def test_a_model_of_nnx(tmp_path):
    model = nnx.Linear(20, 30, rngs=nnx.Rngs(0))
    params = bregjax.sparsify(jax.random.key(0), nnx.state(model, nnx.Param), 0.1)
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, params)
    other = nnx.Linear(20, 30, rngs=nnx.Rngs(1))
    nnx.update(other, bregjax.load_sparse(path, nnx.state(other, nnx.Param)))
    np.testing.assert_array_equal(other.kernel[...], params["kernel"][...])
    assert set(bregjax.load_sparse(path)) == {"kernel", "bias"}


def test_wrong_files_and_trees_are_named(tmp_path):
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, {"a": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="differ in the leaves a, b"):
        bregjax.load_sparse(path, {"b": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\) in the file, \(3, 2\) in like"):
        bregjax.load_sparse(path, {"a": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="two leaves of params are called 'a/b'"):
        bregjax.save_sparse(path, {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)})
    save_file({"a": np.ones(3)}, path)
    with pytest.raises(ValueError, match="path must be a file that save_sparse wrote"):
        bregjax.load_sparse(path)
    path.write_text("weights, in words")
    with pytest.raises(ValueError, match=r"path must be a file that save_sparse wrote.*header"):
        bregjax.load_sparse(path)


@pytest.mark.parametrize(
    ("whole", "damaged", "reason"),
    [
        (b'"9,9"', b'"9,7"', "has 9 marks in 88 bits"),
        (b'"9,9"', b'"9,?"', "invalid literal"),
        (b"a.nonzero", b"a.nonzerO", "a.nonzero"),
        (b"\xff\x80", b"\xff\x00", "has 8 marks"),
    ],
)
def test_a_damaged_file_is_no_network(tmp_path, whole, damaged, reason):
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, {"a": jnp.zeros((9, 9)).at[0].set(2.0)})
    content = path.read_bytes()
    assert content.count(whole) == 1
    path.write_bytes(content.replace(whole, damaged))
    with pytest.raises(ValueError, match=rf"path must be a file that save_sparse wrote.*{reason}"):
        bregjax.load_sparse(path)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.int4])
def test_what_could_not_be_read_back_is_not_written(tmp_path, dtype):
    path = tmp_path / "network.safetensors"
    with pytest.raises(TypeError, match=r"a/b has dtype .*, which load_sparse could not read"):
        bregjax.save_sparse(path, {"a": {"b": jnp.ones((2, 2), dtype)}})
    assert not path.exists()


def test_names_like_those_of_parts_come_back(tmp_path):
    path = tmp_path / "network.safetensors"
    params = {
        "a.values": jnp.arange(3.0),
        "b": jnp.zeros((9, 9)).at[0].set(2.0),
        "c.nonzero": jnp.ones(2),
    }
    bregjax.save_sparse(path, params)
    loaded = bregjax.load_sparse(path)
    assert set(loaded) == set(params)
    for name, x in params.items():
        np.testing.assert_array_equal(loaded[name], x)
    with pytest.raises(ValueError, match="a leaf of params is called 'bregjax'"):
        bregjax.save_sparse(path, {"bregjax": jnp.ones(2)})


def test_a_file_with_more_leaves_than_like_is_refused(tmp_path):
    path = tmp_path / "network.safetensors"
    bregjax.save_sparse(path, {"a": jnp.ones((2, 3)), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match="differ in the leaves b"):
        bregjax.load_sparse(path, {"a": jnp.ones((2, 3))})
