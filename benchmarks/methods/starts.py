"""How a training starts: the dense initial parameters are thinned out."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

import bregjax
from bregjax import baselines


class Start(Protocol):
    """Turns the dense initial parameters into those that training starts with."""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """The parameters, from a random key."""
        ...

    def record(self) -> dict[str, Any]:
        """The settings, for summary.json."""
        ...


@dataclasses.dataclass(frozen=True)
class SparseStart:
    """A random share of the weights, scaled so that the variance of layers' outputs stays.

    Convolutions keep whole kernels, dense layers single entries, unless ``groups`` says otherwise.
    Biases are drawn uniformly from [0, bias/√fan_in], as in the authors' code: a unit without live
    weights and with bias 0 is at the kink of its ReLU, where no gradient ever wakes it.
    """

    density: float = 0.01
    gain: float = 1.0
    """a further factor on the surviving weights"""
    bias: float = 1.0
    """scale of the biases; for a norm, fan_in is the number of its features"""
    groups: dict[str, bregjax.Regularizer] = dataclasses.field(
        default_factory=lambda: {"dense": bregjax.l1(), "conv": bregjax.per_kernel()}
    )
    """what survives or not, by kind of layer"""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""
        kinds = bregjax.label_by_kind(params)
        for index, (kind, groups) in enumerate(self.groups.items()):
            mask = jax.tree.map(lambda label, kind=kind: label == kind, kinds)
            if not any(jax.tree.leaves(mask)):
                continue
            params = bregjax.sparsify(
                jax.random.fold_in(key, index), params, self.density, groups=groups, mask=mask
            )
            params = jax.tree.map(lambda x, mine: self.gain * x if mine else x, params, mask)
        return bregjax.positive_biases(
            jax.random.fold_in(key, len(self.groups)), params, scale=self.bias
        )

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {
            "initial_density": self.density,
            "initial_gain": self.gain,
            "initial_bias": self.bias,
        }


@dataclasses.dataclass(frozen=True)
class LowRankStart:
    """The leading singular values of the random kernels; biases are drawn as in `SparseStart`."""

    share: float
    """the rank as a share of the largest possible one; at least one singular value stays"""
    gain: float = 0.3
    """the norm of the thinned kernel as a share of its norm before. 1 would keep the variance of
    the layer's outputs, but these few directions are random, and large ones never go away."""
    bias: float = 1.0
    """as in `SparseStart`"""

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""

        def thin_out(x: jax.Array) -> jax.Array:
            if x.ndim < 2:
                return x
            rank = max(1, round(self.share * min(x.size // x.shape[-1], x.shape[-1])))
            kept = bregjax.nuclear(rank=rank).prox(x, 0.0)
            return self.gain * kept * jnp.sqrt(jnp.sum(x**2) / jnp.sum(kept**2))

        return bregjax.positive_biases(key, jax.tree.map(thin_out, params), scale=self.bias)

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {"initial_rank": self.share, "initial_gain": self.gain, "initial_bias": self.bias}


@dataclasses.dataclass(frozen=True)
class ErdosRenyiStart:
    """A random share of all weights, spread over the layers by `erdos_renyi_sparsify`."""

    density: float

    def __call__(self, key: jax.Array, params: Any) -> Any:
        """See `Start`."""
        return baselines.erdos_renyi_sparsify(key, params, self.density)

    def record(self) -> dict[str, Any]:
        """See `Start`."""
        return {"initial_density": self.density, "initial_layers": "Erdős-Rényi kernel"}
