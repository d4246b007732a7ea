"""A first guess of the strength λ, where it is chosen by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bregjax._evidence import (
    DualReader,
    check_steps_through,
    factor_with_count,
    leaves_with_dual,
)
from bregjax._top_k import Pool
from bregjax._validation import (
    check_arrays,
    check_transformation,
    check_whole,
    known_number,
    raised_by,
)


def waking_strength(
    optimizer: optax.GradientTransformation,
    gradients: Any,
    steps: int,
    density: float,
    **extra_args: Any,
) -> jax.Array:
    r"""The strength λ at which a given share of the weights has woken after a number of steps.

    A sleeping weight wakes at the step at which the evidence in its dual exceeds λ. If the
    gradients stayed as they are, its dual after T steps would be :math:`\sum_{t<T} u_t`, where
    :math:`u_t` are the updates that the optimizer makes of them. Then

    .. math:: \lambda = k\text{-th largest evidence of } \sum_{t<T} u_t, \qquad
        k = \operatorname{round}(d\,n).

    For ``adabreg`` with `l1` each :math:`|u_t|` is the learning rate τ, so λ = T·τ whatever d is;
    for ``linbreg`` it is :math:`\tau|g|`. Real gradients become smaller and change their signs, so
    fewer weights wake: take the result as the right order of magnitude.

    Args:
      optimizer: `linbreg`, `adabreg`, or a chain or partition of them, built with ``strength=1``
        and with the learning rate and the regularizer of the training.
      gradients: the gradients of one batch before training, shaped like the parameters.
      steps: T, the number of steps after which the share lives; a tenth of the whole training is a
        good choice.
      density: d, the share of the regularized entries, in (0, 1].
      **extra_args: passed to the optimizer's ``update``, where it needs any.

    Returns:
        λ, a scalar, float32; jittable. If ``optimizer`` was built with another strength, the result
        is a factor on that strength.

    Raises:
        ValueError: if ``density`` or ``steps`` is out of range, or the optimizer keeps no dual.

    Example:
        >>> import jax.numpy as jnp, bregjax
        >>> gradients = jnp.array([[4.0, -3.0], [2.0, 1.0]])
        >>> make = lambda strength: bregjax.linbreg(0.1, bregjax.l1(), strength)
        >>> print(bregjax.waking_strength(make(1.0), gradients, steps=100, density=0.5).round(2))
        25.0

    See Also:
        `adabreg_to_density` and `steer`, which need no strength.
    """
    optimizer = check_transformation("optimizer", optimizer)
    check_whole("steps", steps, at_least=1)
    density = known_number("density", density, above=0, at_most=1)
    check_arrays("gradients", gradients)
    asleep = jax.tree.map(jnp.zeros_like, gradients)
    with raised_by("gradients, of whose shapes and dtypes the parameters are"):
        state = optimizer.init(asleep)
    check_steps_through("optimizer", state, "pass what is inside")
    has_dual = leaves_with_dual(state, asleep)
    if not any(has_dual):
        raise ValueError(
            f"optimizer has no mirror_step, such as linbreg has, for any of gradients; got"
            f" {optimizer=}."
        )

    def step(_: int, state: Any) -> Any:
        return optimizer.update(gradients, state, asleep, **extra_args)[1]

    state = jax.lax.fori_loop(0, steps, step, state)
    evidence = DualReader(optimizer, state, asleep, extra_args).evidence()
    factors = [x for x, mine in zip(evidence, has_dual, strict=True) if mine]
    k = jnp.round(jnp.float32(density) * float(sum(x.size for x in factors)))
    return factor_with_count(Pool(factors), k.astype(jnp.uint32))
