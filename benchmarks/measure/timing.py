"""Timing several things side by side."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.cli.progress import track


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]], repeats: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Seconds of each repeat of each call; all are called in turn and in random order.

    So if the machine is slow for a while, it is slow for all of them, and no call always runs after
    the same other one, which may fill the cache. Each is called once before, to compile.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(repeats), "timing"):
        for name in rng.permutation(list(calls)):
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def speedup(seconds: Mapping[str, np.ndarray], name: str, baseline: str) -> dict[str, Any]:
    """How many times as fast ``name`` is as ``baseline``, for summary.json.

    `time_in_turn` measured the seconds. Ratios are taken repeat by repeat; the result has their
    median and quartiles.
    """
    low, median, high = np.quantile(seconds[baseline] / seconds[name], (0.25, 0.5, 0.75))
    return {"speedup": float(median), "speedup_quartiles": [float(low), float(high)]}


def forward_pass(model: nnx.Module, inputs: jax.Array) -> Callable[[], jax.Array]:
    """A call that runs the network on these inputs, as one jitted program of its variables."""
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, inputs: nnx.merge(graphdef, state)(inputs))
    return lambda: run(state, inputs)
