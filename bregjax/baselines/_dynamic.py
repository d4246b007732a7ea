"""Dynamic sparse training: a support of constant size that moves while the weights are trained."""

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bregjax._leaves import Mask, marks_of
from bregjax._live_weights import keep_live, keep_live_state, set_dead_to_zero, support_of
from bregjax._numerics import key_from, value_at
from bregjax._sharding import sharded_as
from bregjax._top_k import top_k
from bregjax._validation import (
    check_choice,
    check_key,
    check_range,
    check_transformation,
    check_update,
    check_whole,
)
from bregjax._when_due import when_due


class DynamicSparsityState(NamedTuple):
    """State of `dynamic_sparsity`."""

    count: jax.Array
    """steps done, shape (), int32"""
    key: Any
    """the data of the key for random growth; None with growth by the gradient"""
    masks: Any
    """which weights are live: booleans shaped like the parameters. A live weight may be 0."""
    inner_state: Any


def dynamic_sparsity(
    inner: optax.GradientTransformation,
    *,
    every: int,
    stop: int,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
    grow: Literal["gradient", "random"] = "gradient",
    key: jax.Array | None = None,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Train a sparse network, and from time to time move its smallest weights elsewhere.

    At the steps t = Δt, 2Δt, … before ``stop``, in each array with m live weights

    .. math:: d = \operatorname{round}(f_t m); \qquad
        K = \operatorname{top}_{m-d}\,\{|\theta_i| : i \in M\}; \qquad
        M \leftarrow K \cup \operatorname{top}_d\,\{\text{score}_i : i \notin K\}

    and the values of the weights do not change. At all other steps the weights in M take a step of
    the inner optimizer. So m is constant in each array. A weight that has just been dropped may
    grow again at once; then it keeps its value and momentum. All other weights that grow start with
    both at zero. Dead weights are exactly 0.0.

    The support M at the start is the set of non-zero parameters at ``init``, so thin the network
    out before (`sparsify`, `erdos_renyi_sparsify`). Nothing may be chained after this
    transformation; put weight decay into ``inner``.

    Args:
      inner: any optimizer.
      every: Δt, the number of steps between two changes of the support.
      stop: the step from which on the support stays.
      drop_fraction: f, the share of the live weights that moves, in (0, 1], or its schedule.
      grow: ``"gradient"``: the score is the magnitude of the gradient; ``"random"``: it is random.
      key: a PRNG key, for random growth. The initial parameters are folded into it, so that
        networks trained side by side under `jax.vmap` grow differently.
      mask: which leaves are sparse, as in `linbreg`; by default those of `weight_mask`.

    Returns:
        The optimizer, with a `DynamicSparsityState`.

    Raises:
        ValueError: if an argument is out of range or unknown, or random growth has no key; at
          ``update``, if ``params`` is missing.

    Example:
        >>> import jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.baselines.dynamic_sparsity(
        ...     optax.sgd(0.1), every=1, stop=5, drop_fraction=0.5
        ... )
        >>> params = jnp.array([[2.0, 0.1, 0.0, 0.0]])
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.array([[0.0, 0.1, 0.0, -3.0]]), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(params, state.masks)
        [[2.   0.09 0.   0.  ]] [[ True  True False False]]
        [[2. 0. 0. 0.]] [[ True False False  True]]
        [[2. 0. 0. 0.]] [[ True False False  True]]

    References:
        Evci, Gale, Menick, Castro, Elsen, `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
        ICML 2020, Algorithm 1.

    Notes:
        Algorithm 1 would also change the support at step 0, before any training; here the first
        change is at step ``every``. The inner optimizer does nothing at such a step, so a schedule
        inside it does not count the step.
    """
    check_whole("every", every, at_least=1)
    check_whole("stop", stop, at_least=1)
    check_range("drop_fraction", drop_fraction, above=0, at_most=1, schedule=True)
    check_choice("grow", grow, ("gradient", "random"))
    if (grow == "random") != (key is not None):
        raise ValueError(f'key must be given with grow="random" and only then, got key={key!r}.')
    if key is not None:
        check_key("key", key)
    inner = check_transformation("inner", inner)

    def move_support(
        support: tuple[Any, Any], params: Any, grads: Any, fraction: jax.Array
    ) -> tuple[Any, Any]:
        masks, key_data = support
        if not jax.tree.leaves(masks):
            return support
        if key is None:
            scores = grads
        else:
            next_key, draw_key = jax.random.split(key_from(key_data, key))
            key_data = jax.random.key_data(next_key)
            # One draw for all leaves: a generator for each leaf would take long to compile.
            live, treedef = jax.tree.flatten(masks)
            ends = list(itertools.accumulate(x.size for x in live))
            drawn = jnp.split(jax.random.uniform(draw_key, (ends[-1],)), ends[:-1])
            scores = treedef.unflatten(
                [sharded_as(x.reshape(y.shape), y) for x, y in zip(drawn, live, strict=True)]
            )

        def move(x: jax.Array, score: jax.Array, live: jax.Array) -> jax.Array:
            size = jnp.sum(live)
            dropped = jnp.round(fraction * size.astype(jnp.float32)).astype(jnp.int32)
            [kept] = top_k([[x]], size - dropped, [live]).masks
            [grown] = top_k([[score]], dropped, [~kept]).masks
            return kept | grown

        leaves = zip(*map(jax.tree.leaves, (params, scores, masks)), strict=True)
        moved = [
            move(*leaf) if marked else leaf[-1]
            for leaf, marked in zip(leaves, jax.tree.leaves(marks_of(params, mask)), strict=True)
        ]
        return jax.tree.structure(masks).unflatten(moved), key_data

    def init(params: Any) -> DynamicSparsityState:
        key_data = None
        if key is not None:
            key_data = jax.random.key_data(jax.random.fold_in(key, _fingerprint(params)))
        count = jnp.zeros([], jnp.int32)
        return DynamicSparsityState(count, key_data, support_of(params, mask), inner.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, DynamicSparsityState]:
        check_update(updates, state, params, DynamicSparsityState)
        due = (state.count > 0) & (state.count % every == 0) & (state.count < stop)
        fraction = jnp.asarray(value_at(drop_fraction, state.count), jnp.float32).reshape(())
        support = (state.masks, state.key)
        grads = updates if key is None else None
        masks, key_data = when_due(due, move_support, support, params, grads, fraction)
        inner_state = keep_live_state(inner, state.inner_state, masks)
        stepped = inner.update(keep_live(updates, masks), inner_state, params, **extra_args)
        waiting = (optax.tree.zeros_like(stepped[0]), inner_state)
        new_updates, inner_state = optax.tree.where(due, waiting, stepped)
        next_state = DynamicSparsityState(
            jnp.asarray(optax.safe_increment(state.count)), key_data, masks, inner_state
        )
        return set_dead_to_zero(new_updates, params, masks), next_state

    return optax.GradientTransformationExtraArgs(init, update)


def _fingerprint(params: Any) -> jax.Array:
    """A number that depends on all bits, but not on the order in which they are added."""
    leaves = jax.tree.leaves(params)
    bits = [lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) for x in leaves]
    return sum((jnp.sum(x, dtype=jnp.uint32) for x in bits), jnp.uint32(0))


def rigl(
    inner: optax.GradientTransformation,
    *,
    every: int,
    stop: int,
    drop_fraction: float = 0.3,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RigL: the smallest weights are dropped, and those with the largest gradients grow.

    The share that moves decays as a cosine:

    .. math:: f_t = \frac{\alpha}{2}\Bigl(1 + \cos\frac{t\pi}{T_\text{end}}\Bigr)

    Args:
      inner: any optimizer; the paper's is SGD with momentum.
      every: Δt, the number of steps between two changes of the support (the paper: 100).
      stop: T_end (the paper: three quarters of the training).
      drop_fraction: α, in (0, 1] (the paper: 0.3).
      mask: which leaves are sparse, as in `dynamic_sparsity`.

    Returns:
        The optimizer. `dynamic_sparsity` says what it does and how the network has to start.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> baselines = bregjax.baselines
        >>> sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
        >>> tx = baselines.rigl(sgd, every=100, stop=750)
        >>> dense = {"kernel": jnp.ones((30, 20)), "bias": jnp.zeros(20)}
        >>> params = baselines.erdos_renyi_sparsify(jax.random.key(0), dense, 0.1)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(dense, state, params)
        >>> print(jnp.count_nonzero(optax.apply_updates(params, updates)["kernel"]))
        60

    References:
        Evci, Gale, Menick, Castro, Elsen, `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
        ICML 2020.
    """
    check_whole("stop", stop, at_least=1)
    check_range("drop_fraction", drop_fraction, above=0, at_most=1)
    schedule = optax.cosine_decay_schedule(drop_fraction, stop)
    return dynamic_sparsity(inner, every=every, stop=stop, drop_fraction=schedule, mask=mask)


def set_training(
    inner: optax.GradientTransformation,
    *,
    key: jax.Array,
    every: int,
    stop: int,
    drop_fraction: optax.ScalarOrSchedule = 0.3,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SET, sparse evolutionary training: the smallest weights are dropped, random ones grow.

    Args:
      inner: any optimizer.
      key: a PRNG key.
      every: the number of steps between two changes of the support (the paper: an epoch).
      stop: the step after which the support stays (the paper: the last epoch).
      drop_fraction: ζ, the share that moves, in (0, 1] (the paper: 0.3).
      mask: which leaves are sparse, as in `dynamic_sparsity`.

    Returns:
        The optimizer. `dynamic_sparsity` says what it does and how the network has to start.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax, bregjax
        >>> tx = bregjax.baselines.set_training(
        ...     optax.sgd(0.1), key=jax.random.key(0), every=2, stop=10
        ... )
        >>> params = jnp.zeros((4, 5)).at[0].set(jnp.arange(1.0, 6.0))
        >>> state = tx.init(params)
        >>> for _ in range(3):
        ...     updates, state = tx.update(jnp.zeros((4, 5)), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params[0], state.masks.sum())
        [0. 0. 3. 4. 5.] 5

    References:
        Mocanu et al., `Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science <https://arxiv.org/abs/1707.04780>`_, Nature
        Communications 9, 2018.

    Notes:
        The paper ranks positive and negative weights separately and draws random values for weights
        that grow. Here weights are ranked by magnitude and grow from zero, as in RigL's code.
    """
    return dynamic_sparsity(
        inner,
        every=every,
        stop=stop,
        drop_fraction=drop_fraction,
        grow="random",
        key=key,
        mask=mask,
    )
