"""What each setting of the exactly steered methods is worth: one changed at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import bregjax
from benchmarks.methods.optimizers import adabreg, clipped, decayed, linbreg
from benchmarks.methods.recipes import Method, Steered
from benchmarks.methods.regularization import everywhere
from benchmarks.methods.schedules import Cosine


@dataclasses.dataclass(frozen=True)
class _Settings:
    make: Callable[..., Method]
    rate: float
    weight_decay: float = 0.0
    clip: float | None = None
    keep_weights: bool = True
    flat: float = 0.0
    ramp: float = Steered.ramp

    def recipe(self, density: float, warmup_epochs: float, note: str) -> Steered:
        """The method with these settings, called by what was changed."""
        rate = Cosine(self.rate, warmup_epochs=warmup_epochs, flat=self.flat)
        method = self.make(rate, start=None, keep_weights=self.keep_weights)
        method = method if self.clip is None else clipped(method, self.clip)
        method = decayed(method, self.weight_decay) if self.weight_decay else method
        return Steered(dataclasses.replace(method, note=note), density, ramp=self.ramp)


def ablation(density: float, warmup_epochs: float) -> Iterator[Steered]:
    """AdaBreg and LinBreg, exactly steered from dense, then with one setting changed at a time.

    LinBreg is that of the preset `best`. AdaBreg begins with a larger learning rate and a larger λ.
    """
    adaptive = functools.partial(adabreg, regularization=everywhere(bregjax.l1(), 1.0))
    plain = functools.partial(linbreg, regularization=everywhere(bregjax.l1(), 1e-3), momentum=0.9)
    both = {
        "base": {},
        "λ shrinks the weights": {"keep_weights": False},
        "flat rate during the ramp": {"flat": Steered.ramp},
        "ramp 60 %": {"ramp": 0.6},
        "ramp 100 %": {"ramp": 1.0},
    }
    of_adabreg = {
        "rate 0.005": {"rate": 5e-3},
        "λ from 0.001": {
            "make": functools.partial(adabreg, regularization=everywhere(bregjax.l1(), 1e-3))
        },
        "ε 1e-4": {"make": functools.partial(adaptive, eps=1e-4)},
        "weight decay 5e-4": {"weight_decay": 5e-4},
        "clipped at 0.3": {"clip": 0.3},
    }
    of_linbreg = {
        "rate 0.25": {"rate": 0.25},
        "no weight decay": {"weight_decay": 0.0},
        "clipped at 0.1": {"clip": 0.1},
        "not clipped": {"clip": None},
    }
    for base, changes in (
        (_Settings(adaptive, rate=2e-2), both | of_adabreg),
        (_Settings(plain, rate=1.0, weight_decay=5e-4, clip=0.3), both | of_linbreg),
    ):
        for note, change in changes.items():
            yield dataclasses.replace(base, **change).recipe(density, warmup_epochs, note)
