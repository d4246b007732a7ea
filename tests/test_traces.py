"""The authors' PyTorch optimizers, step by step in float64: data/reference/README.md."""

import collections
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

PATHS = sorted((Path(__file__).parent / "data" / "reference" / "traces").glob("*.npz"))
ATOL = 1e-10
# Data of the reference, its name for the same thing here, and the sign.
BUFFERS = {
    "dual": ("dual", 1),
    "momentum_buffer": ("trace", -1),
    "exp_avg": ("mu", 1),
    "exp_avg_sq": ("nu", 1),
}

FLAX_REGULARIZERS = {
    "none": bregjax.none(),
    "l1": bregjax.l1(),
    "l1_pos": bregjax.nonneg_l1(),
    "l1_l2": bregjax.per_neuron(),
    "l1_l2_conv": bregjax.per_kernel(),
    "l1_l1_l2": bregjax.sparse_group(bregjax.per_neuron()),
    "nuclear": bregjax.nuclear(),
    "nuclear_conv": bregjax.nuclear(row_axes=(-2, -1)),
}
PYTORCH_REGULARIZERS = {
    "l1_l2": bregjax.group_l2(axis=1),
    "l1_l2_conv": bregjax.group_l2(axis=(2, 3)),
    "l1_l1_l2": bregjax.sparse_group(1),
    "nuclear": bregjax.nuclear(row_axes=0),
    "nuclear_conv": bregjax.nuclear(row_axes=(0, 1)),
}


class Trace(NamedTuple):
    """The data of one file."""

    data: dict[str, np.ndarray]
    optimizer: str
    regularizer: str
    strength: float
    delta: float
    learning_rate: Any


def load(path: Path) -> Trace:
    with np.load(path) as file:
        data = dict(file)
    rates = data.get("lr_schedule")
    return Trace(
        data=data,
        optimizer=str(data["optimizer"]),
        regularizer=str(data["regularizer"]),
        strength=float(data["effective_lam"]),
        delta=float(data.get("delta", 1.0)),
        learning_rate=float(data["lr"]) if rates is None else lambda t: jnp.asarray(rates)[t],
    )


def to_flax(x: np.ndarray) -> np.ndarray:
    """PyTorch's (out, in) or (out, in, kh, kw) as (in, out) or (kh, kw, in, out)."""
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def mark_all(params: Any) -> Any:
    """A mask for vectors too: by default they are not regularized."""
    return jax.tree.map(lambda _: True, params)


def alias(trace: Trace, regularizer: bregjax.Regularizer) -> optax.GradientTransformation:
    args = trace.learning_rate, regularizer, trace.strength
    if trace.optimizer == "ProxSGD":
        return bregjax.prox_sgd(*args, mask=mark_all)
    if trace.optimizer == "AdaBreg":
        b1, b2 = trace.data["betas"].tolist()
        return bregjax.adabreg(
            *args, delta=trace.delta, b1=b1, b2=b2, eps=float(trace.data["eps"]), mask=mark_all
        )
    momentum = float(trace.data["momentum"]) or None
    return bregjax.linbreg(*args, delta=trace.delta, momentum=momentum, mask=mark_all)


def chain(trace: Trace, regularizer: bregjax.Regularizer) -> optax.GradientTransformation:
    rate, strength = trace.learning_rate, trace.strength
    if trace.optimizer == "ProxSGD":
        prox = bregjax.prox_step(regularizer, strength, rate)
        return optax.chain(optax.scale_by_learning_rate(rate), prox)
    front = [optax.scale_by_learning_rate(rate)]
    if trace.optimizer == "AdaBreg":
        b1, b2 = trace.data["betas"].tolist()
        front = [optax.scale_by_adam(b1=b1, b2=b2, eps=float(trace.data["eps"])), *front]
    if trace.optimizer == "LinBreg_momentum":
        momentum = float(trace.data["momentum"])
        front += [optax.scale(1 - momentum), optax.trace(momentum)]
    return optax.chain(
        *front,
        bregjax.mirror_step(regularizer, strength, trace.delta),
        bregjax.prox_step(regularizer, strength, trace.delta),
    )


def run(
    tx: optax.GradientTransformation, init: np.ndarray, grads: np.ndarray, names: list[str]
) -> dict[str, np.ndarray]:
    """The parameters and the named parts of the state at every step, the initial ones first."""

    def record(params: Any, state: Any) -> dict[str, jax.Array]:
        return {"params": params["w"]} | {n: optax.tree.get(state, n)["w"] for n in names}

    def step(carry: tuple, gradient: jax.Array) -> tuple:
        params, state = carry
        updates, state = tx.update({"w": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), record(params, state)

    params = {"w": jnp.asarray(init)}
    state = tx.init(params)
    # Optax's Adam raises a float to an integer power, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard" if "mu" in names else "strict"):
        _, history = jax.jit(lambda *args: jax.lax.scan(step, *args))((params, state), grads)
    first = record(params, state)
    return {name: np.concatenate([first[name][None], history[name]]) for name in history}


def check(trace: Trace, history: dict[str, np.ndarray], layout: Any) -> None:
    def reordered(key: str) -> np.ndarray:
        return np.stack([layout(x) for x in trace.data[key]])

    params = reordered("params")
    assert history["params"].dtype == np.float64
    np.testing.assert_allclose(history["params"], params, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(history["params"] == 0, params == 0)
    for key, (name, sign) in BUFFERS.items():
        assert (key in trace.data) == (name in history)
        if name in history:
            np.testing.assert_allclose(sign * history[name], reordered(key), rtol=0, atol=ATOL)
    if "rank" in trace.data:
        matrices = history["params"]
        if matrices.ndim == 5:  # (steps, kh, kw, in, out), or PyTorch's (steps, out, in, kh, kw)
            channels_last = layout is to_flax
            kernel_size = math.prod(matrices.shape[1:3] if channels_last else matrices.shape[3:])
            shape = (kernel_size, -1) if channels_last else (-1, kernel_size)
            matrices = matrices.reshape(len(matrices), *shape)
        ranks = jax.vmap(lambda x: bregjax.effective_rank(x, tolerance=1e-9))(matrices)
        assert ranks[0] == 3
        np.testing.assert_array_equal(ranks, trace.data["rank"])


def buffers(trace: Trace) -> list[str]:
    return [name for key, (name, _) in BUFFERS.items() if key in trace.data]


def test_no_trace_is_missing():
    counts = collections.Counter(path.stem.split("__")[0] for path in PATHS)
    assert counts == {"LinBreg": 17, "LinBreg_momentum": 17, "AdaBreg": 18, "ProxSGD": 8}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("make", [alias, chain])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_step_of_every_trace(path, make):
    trace = load(path)
    tx = make(trace, FLAX_REGULARIZERS[trace.regularizer])
    grads = np.stack([to_flax(g) for g in trace.data["grads"]])
    history = run(tx, to_flax(trace.data["init"]), grads, buffers(trace))
    check(trace, history, to_flax)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "path", [path for path in PATHS if "__nuclear" in path.stem], ids=lambda path: path.stem
)
def test_the_gram_matrix_follows_the_nuclear_traces_too(path):
    trace = load(path)
    row_axes = {"nuclear": -1, "nuclear_conv": (-2, -1)}[trace.regularizer]
    tx = alias(trace, bregjax.nuclear(method="gram", row_axes=row_axes))
    grads = np.stack([to_flax(g) for g in trace.data["grads"]])
    history = run(tx, to_flax(trace.data["init"]), grads, buffers(trace))
    check(trace, history, to_flax)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("regularizer", PYTORCH_REGULARIZERS)
def test_explicit_axes_serve_pytorchs_layout(reference, regularizer):
    trace = load(reference / "traces" / f"LinBreg_momentum__{regularizer}__delta0.5.npz")
    tx = alias(trace, PYTORCH_REGULARIZERS[regularizer])
    history = run(tx, trace.data["init"], trace.data["grads"], buffers(trace))
    check(trace, history, layout=lambda x: x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_value_of_the_regularizer(path):
    trace = load(path)
    expected = trace.data["reg_value"].copy()
    if trace.regularizer == "l1_pos" and np.any(trace.data["init"] < 0):
        # The reference takes ‖x‖₁ of a negative start; the constrained functional is infinite.
        assert np.isfinite(expected[0])
        expected[0] = np.inf
    if trace.regularizer == "l1_l1_l2":
        # The reference reports 0.
        assert not np.any(expected)
        entries, inputs = trace.data["params"], trace.data["params"].shape[2]
        rows = np.sqrt(inputs) * np.linalg.norm(entries, axis=2).sum(axis=1)
        expected = trace.strength * (np.abs(entries).sum(axis=(1, 2)) + rows)
        assert np.all(expected > 0)
    regularizer = FLAX_REGULARIZERS[trace.regularizer]
    params = np.stack([to_flax(x) for x in trace.data["params"]])
    values = jax.vmap(
        lambda x: bregjax.regularizer_value(x, regularizer, trace.strength, mask=mark_all)
    )(params)
    np.testing.assert_allclose(values, expected, rtol=0, atol=ATOL)


@pytest.mark.usefixtures("x64")
def test_rate_outside_the_momentum_buffer_is_another_algorithm(reference):
    """After a change of τ the old buffer still carries the old τ (quirk 1, which is the paper)."""
    trace = load(reference / "traces" / "LinBreg_momentum__l1__lrchange.npz")
    rates = trace.data["lr_schedule"]
    change = int(np.flatnonzero(np.diff(rates))[0]) + 1
    momentum = float(trace.data["momentum"])
    outside = optax.chain(
        optax.scale(1 - momentum),
        optax.trace(momentum),
        optax.scale_by_learning_rate(trace.learning_rate),
        bregjax.bregman_step(bregjax.l1(), trace.strength, trace.delta),
    )
    dual = run(outside, trace.data["init"], trace.data["grads"], ["dual"])["dual"]
    error = np.abs(dual - trace.data["dual"]).max(axis=(1, 2))
    assert np.all(error[: change + 1] < ATOL)
    assert np.all(error[change + 1 :] > 1e-3)
