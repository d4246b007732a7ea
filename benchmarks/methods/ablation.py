"""What each setting of `to_density` is worth: one changed at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.methods.optimizers import linbreg_to_density
from benchmarks.methods.recipes import ToDensity
from benchmarks.methods.schedules import Cosine

_OF_TO_DENSITY: dict[str, dict[str, Any]] = {
    "λ never shrinks the weights": {"keep_weights": 1.0},
    "λ always shrinks the weights": {"keep_weights": 0.0},
    "nothing is forgotten": {"evidence_decay": 1.0},
    "a number for each layer": {"scope": "layer"},
    "Erdős–Rényi": {"scope": "erdos_renyi"},
}


def ablation(density: float, warmup_epochs: float) -> Iterator[ToDensity]:
    """AdaBreg and LinBreg as the preset `best` has them, then with one setting changed at a time.

    Of AdaBreg the learning rate is named, as it depends on the number of steps by default.
    """

    def adabreg(rate: float = 1e-2, warmup: float = warmup_epochs) -> ToDensity:
        return ToDensity(density, learning_rate=Cosine(rate, warmup_epochs=warmup))

    def linbreg(rate: float = 0.1, weight_decay: float = 5e-4) -> ToDensity:
        return linbreg_to_density(density, warmup_epochs, rate=rate, weight_decay=weight_decay)

    rows: list[tuple[Callable[..., ToDensity], dict[str, dict[str, Any]]]] = [
        (adabreg, {"rate 0.005": {"rate": 5e-3}, "rate 0.02": {"rate": 2e-2}}),
        (linbreg, {"rate 0.05": {"rate": 0.05}, "no weight decay": {"weight_decay": 0.0}}),
    ]
    for make, changes in rows:
        yield dataclasses.replace(make(), note="base")
        for note, change in _OF_TO_DENSITY.items():
            yield dataclasses.replace(make(), note=note, **change)
        for note, change in changes.items():
            yield dataclasses.replace(make(**change), note=note)
