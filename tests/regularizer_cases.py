"""All deterministic regularizers with naive NumPy counterparts, for tests over the whole table.

Each J here is the support function of a convex set C (the dual ball): p is a subgradient at y if
and only if p lies in C and ⟨p, y⟩ = J(y). The counterparts know J and C, not the prox.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

import bregjax
from bregjax import Regularizer

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    regularizer: Regularizer
    shape: tuple[int, ...]
    value: Callable[[Array], float]
    excess: Callable[[Array], float]
    """how far an array lies outside C; at most 0 inside"""
    project: Callable[[Array], Array]
    """the Euclidean projection onto C"""
    alternating: bool = False
    """whether that is done by alternating projections, which costs digits"""

    def __str__(self) -> str:
        return self.name


def _l1(name: str, regularizer: Regularizer, shape: tuple[int, ...]) -> Case:
    return Case(
        name,
        regularizer,
        shape,
        value=lambda x: float(np.abs(x).sum()),
        excess=lambda p: float(np.abs(p).max() - 1),
        project=lambda x: np.minimum(np.maximum(x, -1), 1),
    )


def _nonneg() -> Case:
    return Case(
        "nonneg_l1",
        bregjax.nonneg_l1(),
        (3, 4),
        value=lambda x: float(x.sum()) if (x >= 0).all() else math.inf,
        excess=lambda p: float(p.max() - 1),
        project=lambda x: np.minimum(x, 1),
    )


def _none() -> Case:
    return Case(
        "none",
        bregjax.none(),
        (3, 4),
        value=lambda x: 0.0,
        excess=lambda p: float(np.abs(p).max()),
        project=np.zeros_like,
    )


def _groups(
    name: str,
    regularizer: Regularizer,
    shape: tuple[int, ...],
    across: tuple[int, ...],
    *,
    a: float = 0.0,
    b: float = 1.0,
    weighted: bool = True,
) -> Case:
    """Groups by an explicit loop: one for each index along the axes ``across``."""
    free = slice(None)
    spans = [range(n) if axis in across else (free,) for axis, n in enumerate(shape)]
    groups = list(itertools.product(*spans))
    n = np.zeros(shape)[groups[0]].size
    radius = b * (math.sqrt(n) if weighted else 1.0)

    def value(x: Array) -> float:
        return sum(a * np.abs(x[g]).sum() + radius * np.sqrt((x[g] ** 2).sum()) for g in groups)

    def excess(p: Array) -> float:
        # In an ℓ∞ ball plus an ℓ2 ball: what is left over the first must fit in the second.
        rests = [np.maximum(np.abs(p[g]) - a, 0) for g in groups]
        return max(float(np.sqrt((rest**2).sum()) - radius) for rest in rests)

    def project(x: Array) -> Array:
        box, ball = np.zeros(shape), np.zeros(shape)
        for _ in range(1 if a == 0 else 2000):  # alternating projections onto the two balls
            box = np.clip(x - ball, -a, a)
            for g in groups:
                rest = (x - box)[g]
                ball[g] = rest * min(1, radius / max(np.sqrt((rest**2).sum()), 1e-300))
        return box + ball

    return Case(name, regularizer, shape, value, excess, project, alternating=a > 0)


def _nuclear(
    name: str, regularizer: Regularizer, shape: tuple[int, ...], order: tuple[int, ...], rows: int
) -> Case:
    """The matrix has the axes ``order[:rows]`` as rows; NumPy decomposes it."""
    back = tuple(order.index(axis) for axis in range(len(shape)))
    moved = tuple(shape[axis] for axis in order)

    def matrix(x: Array) -> Array:
        return x.transpose(order).reshape(math.prod(moved[:rows]), -1)

    def spectrum(x: Array) -> Array:
        return np.linalg.svd(matrix(x), compute_uv=False)

    def project(x: Array) -> Array:
        u, s, vt = np.linalg.svd(matrix(x), full_matrices=False)
        return (u * np.minimum(s, 1) @ vt).reshape(moved).transpose(back)

    return Case(
        name,
        regularizer,
        shape,
        value=lambda x: float(spectrum(x).sum()),
        excess=lambda p: float(spectrum(p).max() - 1),
        project=project,
    )


_CONV = (2, 3, 2, 3)
_NEURONS = bregjax.per_neuron()
_PLAIN = bregjax.per_neuron(size_weighted=False)

CASES = (
    _none(),
    _l1("l1", bregjax.l1(), (3, 4)),
    _l1("l1 of a vector", bregjax.l1(), (5,)),
    _nonneg(),
    _groups("axis 0", bregjax.group_l2(axis=0), (4, 3), (1,)),
    _groups("axis -1", bregjax.group_l2(axis=-1), (4, 3), (0,)),
    _groups("axis (1, 3)", bregjax.group_l2(axis=(1, 3)), _CONV, (0, 2)),
    _groups("all_but 0", bregjax.group_l2(all_but=0), _CONV, (0,)),
    _groups("unweighted", _PLAIN, (4, 3), (1,), weighted=False),
    _groups("per_neuron", bregjax.per_neuron(), (4, 3), (1,)),
    _groups("per_kernel", bregjax.per_kernel(), _CONV, (2, 3)),
    _groups("per_filter", bregjax.per_filter(), _CONV, (3,)),
    _groups("per_input_channel", bregjax.per_input_channel(), _CONV, (2,)),
    _groups("per_input_channel of Dense", bregjax.per_input_channel(), (4, 3), (0,)),
    _groups("per_neuron of Equinox", bregjax.per_neuron(out_axis=0), (4, 3), (0,)),
    _groups("per_neuron of heads", bregjax.per_neuron(out_axis=(-2, -1)), (4, 2, 3), (1, 2)),
    _groups("per_kernel of Equinox", bregjax.per_kernel(in_axis=1, out_axis=0), _CONV, (0, 1)),
    _groups("per_input_channel of Equinox", bregjax.per_input_channel(in_axis=1), _CONV, (1,)),
    _groups("per_head", bregjax.per_head(), (4, 2, 3), (1,)),
    _groups("per_head of the output", bregjax.per_head(head_axis=-3), (2, 3, 4), (0,)),
    _groups("per_token", bregjax.per_token(), (4, 3), (0,)),
    _groups("batched", bregjax.batched(bregjax.per_neuron()), (2, 4, 3), (0, 2)),
    _groups("batched along the last axis", bregjax.batched(_NEURONS, 2), (4, 3, 2), (1, 2)),
    _groups("sparse_group", bregjax.sparse_group(0), (4, 3), (1,), a=1.0),
    _groups(
        "sparse_group of kernels",
        bregjax.sparse_group(bregjax.per_kernel(), l1_weight=0.5, group_weight=2.0),
        _CONV,
        (2, 3),
        a=0.5,
        b=2.0,
    ),
    _groups("sparse_group without ℓ1", bregjax.sparse_group(1, l1_weight=0.0), (4, 3), (0,), a=0.0),
    _nuclear("nuclear", bregjax.nuclear(), (4, 3), (0, 1), 1),
    _nuclear("nuclear of Conv", bregjax.nuclear(), _CONV, (0, 1, 2, 3), 3),
    _nuclear("nuclear of kernels", bregjax.nuclear(row_axes=(-1, -2)), _CONV, (3, 2, 0, 1), 2),
)
