"""Pointwise agreement with the authors' PyTorch regularizers, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import bregjax

pytestmark = pytest.mark.usefixtures("x64")

DENSE = (1, 0)  # PyTorch's (out, in) to Flax's (in, out)
CONV = (2, 3, 1, 0)  # PyTorch's (out, in, kh, kw) to Flax's (kh, kw, in, out)

# name in the file, our regularizer, axes that lead from the file's layout to ours
EQUIVALENTS = [
    ("none", bregjax.none(), DENSE),
    ("l1", bregjax.l1(), DENSE),
    ("l1_pos", bregjax.nonneg_l1(), DENSE),
    ("l1_l2", bregjax.per_neuron(), DENSE),
    ("l1_l2", bregjax.group_l2(axis=0), DENSE),
    ("l1_l2", bregjax.group_l2(axis=-2), DENSE),
    ("l1_l2", bregjax.group_l2(axis=1), (0, 1)),
    ("l1_l2", bregjax.group_l2(all_but=0), (0, 1)),
    ("l1_l2", bregjax.per_input_channel(), (0, 1)),
    ("l1_l2_conv", bregjax.per_kernel(), CONV),
    ("l1_l2_conv", bregjax.group_l2(axis=(0, 1)), CONV),
    ("l1_l2_conv", bregjax.group_l2(axis=(2, 3)), (0, 1, 2, 3)),
    ("l1_l2_conv", bregjax.group_l2(all_but=(0, 1)), (0, 1, 2, 3)),
    ("l1_l1_l2", bregjax.sparse_group(0), DENSE),
    ("l1_l1_l2", bregjax.sparse_group(bregjax.per_neuron()), DENSE),
    ("l1_l1_l2", bregjax.sparse_group((1,)), (0, 1)),
    ("nuclear", bregjax.nuclear(), DENSE),
    ("nuclear", bregjax.nuclear(row_axes=1), DENSE),
    ("nuclear_conv", bregjax.nuclear(row_axes=(-2, -1)), CONV),
    ("nuclear_conv", bregjax.nuclear(row_axes=(-1, -2)), CONV),
    ("nuclear_conv", bregjax.nuclear(row_axes=(0, 1)), (0, 1, 2, 3)),
    ("nuclear_conv", bregjax.nuclear(row_axes=(0, 1)), CONV),
]
over_equivalents = pytest.mark.parametrize(
    ("name", "regularizer", "layout"), EQUIVALENTS, ids=[f"{n}-{r}-{a}" for n, r, a in EQUIVALENTS]
)


@pytest.fixture(scope="module")
def record(reference) -> dict[str, np.ndarray]:
    with np.load(reference / "regularizers.npz") as file:
        return dict(file)


def strength_of(name: str, record: dict[str, np.ndarray]) -> float:
    return float(record.get(f"{name}__effective_lam", record["lam"]))


def test_every_regularizer_of_the_record_is_compared(record):
    assert {key.split("__")[0] for key in record if "__" in key} == {n for n, _, _ in EQUIVALENTS}


@over_equivalents
def test_prox(record, name, regularizer, layout):
    x = jnp.asarray(record[f"{name}__x"].transpose(layout))
    for i, delta in enumerate(record["deltas"]):
        expected = record[f"{name}__prox_{i}"].transpose(layout)
        ours = np.asarray(regularizer.prox(x, delta * strength_of(name, record)))
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)
        if not name.startswith("nuclear"):
            np.testing.assert_array_equal(ours == 0, expected == 0)
            assert name == "none" or np.any(ours == 0)


@over_equivalents
def test_subgradient(record, name, regularizer, layout):
    x = jnp.asarray(record[f"{name}__x"].transpose(layout))
    expected = record[f"{name}__sub_grad"].transpose(layout)
    ours = strength_of(name, record) * regularizer.subgradient(x)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@over_equivalents
def test_value(record, name, regularizer, layout):
    if name in ("l1_pos", "l1_l1_l2"):
        pytest.skip("deliberately different, tested below")
    x = jnp.asarray(record[f"{name}__x"].transpose(layout))
    ours = strength_of(name, record) * regularizer.value(x)
    np.testing.assert_allclose(ours, record[f"{name}__value"], rtol=0, atol=1e-10)


def test_difference_nonneg_l1_is_infinite_at_negative_entries(record):
    x = jnp.asarray(record["l1_pos__x"])
    assert jnp.any(x < 0)
    assert bregjax.nonneg_l1().value(x) == jnp.inf
    # The authors' value is the ℓ1 norm there; on non-negative arrays both agree.
    theirs = record["l1_pos__value"] / record["lam"]
    np.testing.assert_allclose(theirs, jnp.sum(jnp.abs(x)), rtol=0, atol=1e-10)
    np.testing.assert_allclose(bregjax.nonneg_l1().value(abs(x)), theirs, rtol=0, atol=1e-10)


def test_difference_sparse_group_has_its_true_value(record):
    x = record["l1_l1_l2__x"]
    assert record["l1_l1_l2__value"] == 0
    true = np.abs(x).sum() + np.sqrt(x.shape[1]) * np.linalg.norm(x, axis=1).sum()
    assert true > 1
    np.testing.assert_allclose(bregjax.sparse_group(1).value(jnp.asarray(x)), true, rtol=1e-14)


def test_difference_sparse_group_strength_is_the_square_of_theirs(record):
    assert record["l1_l1_l2__effective_lam"] == record["lam"] ** 2
    x = jnp.asarray(record["l1_l1_l2__x"])
    with_theirs = bregjax.sparse_group(1).prox(x, float(record["lam"]))
    assert np.max(np.abs(with_theirs - record["l1_l1_l2__prox_0"])) > 0.1
