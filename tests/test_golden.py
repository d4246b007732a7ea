"""Trajectories of the optimizers against a NumPy loop written from the formulas, in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import step_with

import bregjax

STEPS = 12
rng = np.random.default_rng(0)
# Sparse start; the bias is not regularized.
START = {
    "kernel": rng.normal(size=(5, 4)) * (rng.random((5, 4)) < 0.5),
    "bias": rng.normal(size=4),
}
TARGET = {"kernel": 3 * rng.normal(size=(5, 4)), "bias": 3 * rng.normal(size=4)}
NOISE = {"kernel": rng.normal(size=(STEPS, 5, 4)), "bias": rng.normal(size=(STEPS, 4))}


def gradient(params: dict, t: int) -> dict:
    """Of a quadratic, with noise: errors of earlier steps show in later ones."""
    return {name: 2 * (x - TARGET[name]) + NOISE[name][t] for name, x in params.items()}


def soft(x: np.ndarray, s: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - s, 0)


def column_shrink(x: np.ndarray, s: float) -> np.ndarray:
    """The prox of √n·Σ‖column‖, group by group."""
    out = np.zeros_like(x)
    for j in range(x.shape[1]):
        norm, weight = np.linalg.norm(x[:, j]), np.sqrt(x.shape[0])
        if norm > s * weight:
            out[:, j] = x[:, j] * (1 - s * weight / norm)
    return out


def column_direction(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=0)
    return np.sqrt(x.shape[0]) * x / np.where(norms > 0, norms, 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """One run; the rate and the strength are functions of the step."""

    method: str
    rate: Callable[[int], float]
    strength: Callable[[int], float]
    delta: float = 1.0
    momentum: float | None = None
    nesterov: bool = False
    group: bool = False
    decay: float = 0.0
    clip: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


def always(value: float) -> Callable[[int], float]:
    return lambda t: value


def falling_rate(t: int) -> float:
    return 0.2 / (1 + 0.5 * t)


def rising_strength(t: int) -> float:
    return 0.3 + 0.1 * t


CASES = {
    "linbreg": Case("linbreg", always(0.1), always(0.8)),
    "linbreg_delta": Case("linbreg", always(0.1), always(0.8), delta=2.5),
    "linbreg_heavy_ball": Case("linbreg", always(0.1), always(0.8), delta=0.5, momentum=0.9),
    "linbreg_nesterov": Case("linbreg", always(0.1), always(0.8), momentum=0.7, nesterov=True),
    "linbreg_groups": Case("linbreg", always(0.1), always(0.8), delta=0.5, group=True),
    "linbreg_schedules": Case("linbreg", falling_rate, rising_strength, delta=2.0, momentum=0.8),
    "linbreg_nesterov_schedules": Case(
        "linbreg", falling_rate, rising_strength, momentum=0.8, nesterov=True, group=True
    ),
    "linbreg_decay_and_clip": Case(
        "linbreg", always(0.3), always(0.4), momentum=0.5, decay=0.1, clip=5.0
    ),
    "adabreg": Case("adabreg", always(0.2), always(0.8)),
    "adabreg_delta": Case("adabreg", always(0.2), always(0.8), delta=2.5, group=True),
    "adabreg_moments": Case("adabreg", always(0.2), always(0.8), b1=0.5, b2=0.9, eps=0.1),
    "adabreg_schedules": Case("adabreg", falling_rate, rising_strength, delta=0.5),
    "adabreg_decay_and_clip": Case("adabreg", always(0.2), always(0.4), decay=0.1, clip=5.0),
    "prox_sgd": Case("prox_sgd", always(0.1), always(2.0)),
    "prox_sgd_heavy_ball": Case("prox_sgd", always(0.1), always(2.0), momentum=0.9, group=True),
    "prox_sgd_nesterov": Case("prox_sgd", always(0.1), always(2.0), momentum=0.7, nesterov=True),
    "prox_sgd_schedules": Case("prox_sgd", falling_rate, rising_strength, momentum=0.8),
    "prox_sgd_decay_and_clip": Case("prox_sgd", always(0.1), always(2.0), decay=0.1, clip=5.0),
}


def numpy_trajectory(case: Case) -> tuple[list[dict], list[np.ndarray]]:
    """Parameters after each step, and the dual of the kernel before and after each."""
    prox, direction = (column_shrink, column_direction) if case.group else (soft, np.sign)
    w = {name: x.copy() for name, x in START.items()}
    m = {name: np.zeros_like(x) for name, x in w.items()}
    a = {name: np.zeros_like(x) for name, x in w.items()}
    b = {name: np.zeros_like(x) for name, x in w.items()}
    v = w["kernel"] / case.delta + case.strength(0) * direction(w["kernel"])
    params, duals = [], [v]
    for t in range(STEPS):
        rate, strength = case.rate(t), case.strength(t)
        g = gradient(w, t)
        if case.clip is not None:
            norm = np.sqrt(sum(np.sum(x**2) for x in g.values()))
            g = {name: x * min(1, case.clip / norm) for name, x in g.items()}
        g = {name: x + case.decay * w[name] for name, x in g.items()}
        step = {}
        for name, x in g.items():
            if case.method == "adabreg":
                a[name] = case.b1 * a[name] + (1 - case.b1) * x
                b[name] = case.b2 * b[name] + (1 - case.b2) * x**2
                a_hat = a[name] / (1 - case.b1 ** (t + 1))
                b_hat = b[name] / (1 - case.b2 ** (t + 1))
                step[name] = rate * a_hat / (np.sqrt(b_hat) + case.eps)
            elif case.momentum is None:
                step[name] = rate * x
            else:
                fresh = (1 - case.momentum) * rate * x
                m[name] = case.momentum * m[name] + fresh
                step[name] = case.momentum * m[name] + fresh if case.nesterov else m[name]
        if case.method == "prox_sgd":
            kernel = prox(w["kernel"] - step["kernel"], rate * strength)
        else:
            v = v - step["kernel"]
            kernel = prox(case.delta * v, case.delta * strength)
        w = {"kernel": kernel, "bias": w["bias"] - step["bias"]}
        params.append(w)
        duals.append(v)
    return params, duals


def optimizer(case: Case) -> optax.GradientTransformation:
    regularizer = bregjax.per_neuron() if case.group else bregjax.l1()
    args: tuple[Any, ...] = case.rate, regularizer, case.strength
    momentum = {"momentum": case.momentum, "nesterov": case.nesterov}
    if case.method == "linbreg":
        tx = bregjax.linbreg(*args, delta=case.delta, **momentum)
    elif case.method == "prox_sgd":
        tx = bregjax.prox_sgd(*args, **momentum)
    else:
        tx = bregjax.adabreg(*args, delta=case.delta, b1=case.b1, b2=case.b2, eps=case.eps)
    front = [] if case.clip is None else [optax.clip_by_global_norm(case.clip)]
    if case.decay:
        front.append(optax.add_decayed_weights(case.decay))
    return optax.chain(*front, tx)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_trajectory_is_the_one_of_the_formulas(name):
    case = CASES[name]
    expected_params, expected_duals = numpy_trajectory(case)
    # Schedules count in integers, and so does Optax's Adam: no strict promotion here.
    with jax.numpy_dtype_promotion("standard"):
        tx = optimizer(case)
        params: Any = jax.tree.map(jnp.asarray, START)
        state = tx.init(params)
        step = jax.jit(step_with(tx))
        for t in range(STEPS):
            params, state = step(params, state, gradient(params, t))
            for leaf in params:
                np.testing.assert_allclose(
                    params[leaf], expected_params[t][leaf], rtol=0, atol=1e-12
                )
            zeros = expected_params[t]["kernel"] == 0
            np.testing.assert_array_equal(params["kernel"] == 0, zeros)
            if case.method != "prox_sgd":
                dual = optax.tree.get(state, "dual")["kernel"]
                np.testing.assert_allclose(dual, expected_duals[t + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_trajectories_cross_the_threshold(name):
    """The comparison above means something: entries wake or go to sleep on the way."""
    params, _ = numpy_trajectory(CASES[name])
    live = [START["kernel"] != 0] + [p["kernel"] != 0 for p in params]
    changes = sum(np.sum(now != then) for now, then in zip(live[1:], live[:-1], strict=True))
    assert changes >= 3
