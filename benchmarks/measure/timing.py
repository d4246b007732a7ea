"""Timing several things side by side."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.cli.progress import track


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]], repeats: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Seconds of each repeat of each call, all of them in turn and in random order.

    So what slows the machine for a while slows all, and what one leaves in the cache is not always
    for the same other one. Each is called once before, to compile.
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
