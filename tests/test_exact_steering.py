"""Exact counts at each step, and a strength that moves without touching the live weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_table import step_with

import bregjax

REGULARIZERS = {
    "l1": bregjax.l1(),
    "nonneg_l1": bregjax.nonneg_l1(),
    "per_neuron": bregjax.per_neuron(),
    "sparse_group": bregjax.sparse_group(bregjax.per_neuron()),
}


@pytest.fixture(autouse=True)
def promotion():
    """Optax's Adam needs the standard one."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def draw(seed: int, scale: float = 1.0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed))
    return {
        "w": scale * jax.random.normal(keys[0], (20, 30)),
        "b": scale * jax.random.normal(keys[1], (30,)),
    }


# ---- a strength that moves


def after_a_jump(regularizer: Any, new: float, *, chained: bool = False) -> tuple[Any, Any, Any]:
    """Weights before, weights after a jump of λ from 1 with zero gradient, and the new state."""

    def optimizer(strength):
        if not chained:
            return bregjax.linbreg(0.1, regularizer, strength, delta=0.5, keep_weights=True)
        return optax.chain(
            optax.scale_by_learning_rate(0.1),
            bregjax.mirror_step(regularizer, strength, 0.5, keep_weights=True),
            bregjax.prox_step(regularizer, strength, 0.5),
        )

    tx = optimizer(lambda count: jnp.where(count < 10, 1.0, new))
    params = {"w": jnp.abs(draw(0)["w"])}
    state = tx.init(params)
    for i in range(10):
        params, state = step_with(tx)(params, state, {"w": 2 * draw(i + 1)["w"]})
    after, state = step_with(tx)(params, state, {"w": jnp.zeros((20, 30))})
    return params["w"], after["w"], state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("new", [0.6, 1.00001, 1.4])
def test_weights_alive_before_and_after_a_jump_of_the_strength_stay_as_they_are(name, new):
    if name == "sparse_group" and new != 1.00001:
        pytest.skip("where entries of a group come or go, the others follow the group's norm")
    before, after, _ = after_a_jump(REGULARIZERS[name], new)
    both = (before != 0) & (after != 0)
    assert both.sum() > 50
    np.testing.assert_allclose(after[both], before[both], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("new", [0.6, 1.4])
def test_the_rest_falls_asleep_or_wakes_by_the_evidence_of_its_dual(new):
    plain = bregjax.linbreg(0.1, bregjax.l1(), 1.0, delta=0.5)
    params = {"w": jnp.abs(draw(0)["w"])}
    state = plain.init(params)
    for i in range(10):
        params, state = step_with(plain)(params, state, {"w": 2 * draw(i + 1)["w"]})
    dual = np.asarray(optax.tree.get(state, "dual")["w"])
    _, after, state = after_a_jump(bregjax.l1(), new)
    np.testing.assert_array_equal(after != 0, np.abs(dual) > new)
    moved = np.where((np.abs(dual) > max(new, 1.0)), dual + (new - 1.0) * np.sign(dual), dual)
    np.testing.assert_allclose(optax.tree.get(state, "dual")["w"], moved, rtol=0, atol=1e-12)
    woken = (after != 0) & (np.abs(dual) <= 1.0)
    expected = 0.5 * np.sign(dual) * (np.abs(dual) - new)
    np.testing.assert_allclose(after[woken], expected[woken], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", REGULARIZERS)
def test_mirror_step_and_prox_step_do_what_bregman_step_does(name):
    _, one, _ = after_a_jump(REGULARIZERS[name], 1.4)
    _, two, _ = after_a_jump(REGULARIZERS[name], 1.4, chained=True)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chained", [False, True])
def test_a_schedule_says_at_which_steps_the_weights_are_kept(chained):
    """λ rises by 0.2 at the steps 1 and 3 and falls by as much at 4; they are kept from 3 on."""
    values = jnp.array([1.0, 1.2, 1.2, 1.4, 1.2])

    def strength(count):
        return values[count]

    def keep(count):
        return count >= 3

    steps = (
        [bregjax.bregman_step(bregjax.l1(), strength, 0.5, keep_weights=keep)]
        if not chained
        else [
            bregjax.mirror_step(bregjax.l1(), strength, 0.5, keep_weights=keep),
            bregjax.prox_step(bregjax.l1(), strength, 0.5),
        ]
    )
    tx = optax.chain(*steps)
    start = params = {"w": 1 + jnp.abs(draw(0)["w"])}  # no rise puts any of them to sleep
    state, step = tx.init(params), jax.jit(step_with(tx))
    for shrunk_by in (0.0, 0.1, 0.1, 0.1, 0.1):
        params, state = step(params, state, {"w": jnp.zeros((20, 30))})
        np.testing.assert_allclose(params["w"], start["w"] - shrunk_by, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scheduled", [False, True])
def test_live_weights_feel_the_rest_of_a_change_of_the_strength(share, scheduled):
    keep: Any = (lambda count: jnp.where(count < 2, 1.0, share)) if scheduled else share
    strength = optax.piecewise_constant_schedule(1.0, {2: 1.4})
    tx = bregjax.linbreg(0.1, bregjax.l1(), strength, delta=0.5, keep_weights=keep)
    start = params = {"w": 1 + jnp.abs(draw(0)["w"])}  # nothing falls asleep
    state, step = tx.init(params), jax.jit(step_with(tx))
    for _ in range(4):
        params, state = step(params, state, {"w": jnp.zeros((20, 30))})
    np.testing.assert_allclose(params["w"], start["w"] - 0.5 * 0.4 * (1 - share), atol=1e-12)


def test_a_strength_that_stays_leaves_no_trace_of_the_option():
    params, gradient = draw(0), draw(1)
    got = []
    for keep in (False, True):
        tx = bregjax.adabreg(0.1, bregjax.l1(), 0.5, keep_weights=keep)
        moved, state = step_with(tx)(params, tx.init(params), gradient)
        got.append(step_with(tx)(moved, state, gradient)[0])
    jax.tree.map(np.testing.assert_array_equal, *got)


def test_a_regularizer_with_a_state_cannot_keep_the_weights():
    with pytest.raises(ValueError, match=r"keep_weights needs .* got regularizer=_Nuclear"):
        bregjax.mirror_step(bregjax.nuclear(), 1.0, keep_weights=True)


def test_weight_decay_of_adabreg_is_that_of_adamw():
    params, gradient = draw(0), draw(1)
    ours = bregjax.adabreg(0.1, bregjax.none(), 0.0, weight_decay=0.3)
    theirs = optax.adamw(0.1, weight_decay=0.3, mask={"w": True, "b": False})
    got, _ = step_with(ours)(params, ours.init(params), gradient)
    expected, _ = step_with(theirs)(params, theirs.init(params), gradient)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), got, expected)


# ---- exact counts


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.usefixtures("x64")
def test_evidence_is_the_strength_at_which_an_entry_falls_asleep(name):
    regularizer, x = REGULARIZERS[name], draw(0)["w"]
    evidence = np.broadcast_to(regularizer.evidence(x), x.shape)  # one for all of a group
    for entry in [(0, 0), (3, 7), (19, 29)]:
        at = evidence[entry]
        if at > 0:
            assert regularizer.prox(x, at * (1 - 1e-9))[entry] != 0
        assert regularizer.prox(x, at * (1 + 1e-9))[entry] == 0


OPTIMIZERS = {
    "linbreg": lambda keep: bregjax.linbreg(
        0.1, bregjax.l1(), 0.01, momentum=0.9, keep_weights=keep
    ),
    "adabreg": lambda keep: bregjax.adabreg(0.05, bregjax.l1(), 0.01, keep_weights=keep),
    "clipped": lambda keep: optax.chain(
        optax.clip(0.5), bregjax.linbreg(0.1, bregjax.l1(), 0.01, keep_weights=keep)
    ),
}


def steered(
    tx: optax.GradientTransformation, steps: int, noise: float = 0.0
) -> tuple[list[int], Any, Any]:
    """How many weights live after each step towards a random matrix, parameters and state."""
    solution = draw(7)
    params: Any = jax.tree.map(jnp.zeros_like, solution)
    state, counts = tx.init(params), []
    step = jax.jit(step_with(tx))
    for i in range(steps):
        gradient = jax.tree.map(
            lambda x, y, z: 0.3 * (x - y) + noise * z, params, solution, draw(8 + i)
        )
        params, state = step(params, state, gradient)
        counts.append(int(jnp.count_nonzero(params["w"])))
    return counts, params, state


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_so_many_live_after_each_step(name, keep):
    target = optax.linear_schedule(0.5, 0.1, 40)
    tx = bregjax.steer(OPTIMIZERS[name](keep), target, exact=True)
    # Without noise Adam makes the same step for every sleeping weight: their evidence ties.
    counts, params, state = steered(tx, 60, noise=0.1)
    # At Adam's first step all evidence is the same up to rounding.
    assert counts[1:] == [round(600 * float(np.asarray(target(t)))) for t in range(1, 60)]
    assert abs(float(optax.tree.get(state, "gap"))) < 1e-6
    assert np.all(params["b"] != 0)


@pytest.mark.parametrize("keep", [False, True])
def test_a_strength_with_a_schedule_only_changes_the_factor(keep):
    """The mirror step's count is that of the prox step, so both are at one strength.

    With ``keep`` weights that wake at the first step keep what they have at the first strength.
    """
    schedules = (0.01, optax.linear_schedule(0.01, 1.0, 60), optax.linear_schedule(1.0, 0.01, 60))
    ends = []
    for strength in schedules:
        inner = bregjax.adabreg(0.05, bregjax.l1(), strength, keep_weights=keep)
        tx = bregjax.steer(inner, optax.linear_schedule(0.5, 0.1, 20), exact=True)
        counts, params, state = steered(tx, 30, noise=0.1)
        assert counts[-1] == 60
        ends.append(params["w"])
        (mirror,) = bregjax.states_of(state, bregjax.MirrorState)
        assert mirror.count is None or mirror.count == 30
    for other in ends[1:2] if keep else ends[1:]:
        np.testing.assert_allclose(other, ends[0], rtol=0, atol=1e-4)


def test_live_weights_reach_their_solution_when_they_are_kept():
    solution = draw(7)["w"]
    errors = []
    for keep in (False, True):
        tx = bregjax.steer(
            OPTIMIZERS["linbreg"](keep), optax.linear_schedule(0.5, 0.1, 40), exact=True
        )
        _, params, _ = steered(tx, 200)
        live = params["w"] != 0
        errors.append(float(jnp.max(jnp.abs(params["w"] - solution)[live])))
    assert errors[1] < 0.01 < errors[0]


def test_whole_groups_are_steered_up_to_a_group():
    tx = bregjax.linbreg(0.1, bregjax.per_neuron(), 0.01, keep_weights=True)
    counts, params, _ = steered(bregjax.steer(tx, 0.32, exact=True), 30)
    assert counts[-1] == 200  # of the 192 asked for: 10 groups of 20
    assert np.all((np.asarray(params["w"]) != 0).all(0) | (np.asarray(params["w"]) == 0).all(0))


def test_evidence_next_to_the_next_float_is_told_apart():
    value = np.float32(1.5)
    neighbours = np.array([value, np.nextafter(value, np.float32(0)), 0.5, 0.25], np.float32)
    tx = bregjax.steer(
        bregjax.linbreg(1.0, bregjax.l1(), 1.0, keep_weights=True), target=0.25, exact=True
    )
    params: Any = jnp.zeros((1, 4))
    updates, state = tx.update(-jnp.asarray(neighbours)[None], tx.init(params), params)
    assert 0 < float(optax.tree.get(state, "strength_scale")) < 1.5
    assert int(np.count_nonzero(np.asarray(updates))) in (1, 2)


@pytest.mark.parametrize("exact", [False, True])
def test_on_a_gpu_a_steered_step_has_no_branch_and_no_loop(exact):
    tx = bregjax.steer(OPTIMIZERS["linbreg"](True), 0.1, exact=exact, every=2)
    params = draw(0)
    traced = jax.jit(tx.update).trace(params, tx.init(params), params)
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("cuda",)).as_text()
    program = traced.lower().compile().as_text() or ""
    assert "fusion" in program
    assert "conditional(" not in program


def test_every_so_many_steps_the_strength_moves():
    tx = bregjax.steer(OPTIMIZERS["linbreg"](False), 0.2, exact=True, every=3)
    params, scales = draw(0), []
    state = tx.init(params)
    for i in range(6):
        params, state = step_with(tx)(params, state, draw(i))
        scales.append(float(optax.tree.get(state, "strength_scale")))
    assert scales[0] == scales[1] == scales[2] != scales[3] == scales[4] == scales[5]


@pytest.mark.parametrize("count", [40, 60, 90])
def test_landing_from_exact_steering(count):
    tx = bregjax.landing(
        bregjax.steer(OPTIMIZERS["linbreg"](True), 0.1, exact=True), optax.sgd(0.1), 20, count=count
    )
    counts, params, state = steered(tx, 20)
    before = params["w"]
    assert counts[-1] == 60
    step = jax.jit(step_with(tx))
    params, state = step(params, state, jax.tree.map(jnp.ones_like, params))
    assert int(jnp.count_nonzero(params["w"])) == count
    if count == 60:
        np.testing.assert_allclose(params["w"], before, rtol=0, atol=1e-6)
    # Those that had most evidence.
    dual = np.abs(optax.tree.get(state, "dual")["w"])
    live = np.asarray(params["w"]) != 0
    assert dual[live].min() >= dual[~live].max()


def test_what_exact_steering_cannot_do_raises():
    inner = bregjax.linbreg(0.1, bregjax.l1(), 1.0)
    with pytest.raises(ValueError, match="exact=True needs neither measure nor rule"):
        bregjax.steer(inner, 0.1, exact=True, rule=bregjax.adaptive_rule())
    without_dual = bregjax.steer(bregjax.prox_sgd(0.1, bregjax.l1(), 1.0), 0.1, exact=True)
    with pytest.raises(ValueError, match="exact=True needs a mirror_step"):
        without_dual.init(draw(0))
    unknown = bregjax.steer(bregjax.linbreg(0.1, bregjax.nuclear(), 1.0), 0.1, exact=True)
    with pytest.raises(NotImplementedError, match="puts singular values to sleep"):
        unknown.update(draw(0), unknown.init(draw(0)), draw(0))


def test_weights_called_count_are_no_counts():
    class Params(NamedTuple):
        count: jax.Array

    tx: Any = bregjax.steer(
        bregjax.linbreg(0.1, bregjax.l1(), 0.1, keep_weights=True), 1.0, exact=True
    )
    params = Params(jnp.full((2, 2), 5.0))
    state = tx.init(params)
    updates, state = tx.update(Params(jnp.zeros((2, 2))), state, params)
    moved: Any = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved.count, 5.0)


@pytest.mark.parametrize("keep", [False, True])
def test_a_target_of_zero_puts_all_weights_to_sleep(keep):
    tx = bregjax.steer(OPTIMIZERS["linbreg"](keep), 0.0, exact=True)
    counts, params, state = steered(tx, 5, noise=0.1)
    assert counts == [0] * 5
    assert np.isfinite(optax.tree.get(state, "strength_scale"))
    assert np.all(params["b"] != 0)


# ---- evidence that is forgotten


def forgetting(
    regularizer: Any, decay: float, target: Any = 0.4, **kwargs: Any
) -> optax.GradientTransformationExtraArgs:
    inner = bregjax.linbreg(0.1, regularizer, 1.0, delta=0.5, keep_weights=True)
    return bregjax.steer(inner, target, exact=True, evidence_decay=decay, **kwargs)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["l1", "nonneg_l1", "per_neuron"])
def test_weights_stay_as_they_are_while_their_evidence_is_forgotten(name, every):
    """Of sparse groups the last entries die first, as what fades is not the same for all."""
    tx = forgetting(REGULARIZERS[name], 0.9, every=every)
    params: Any = jax.tree.map(jnp.abs, draw(0))
    state = tx.init(params)
    step = jax.jit(step_with(tx))
    for i in range(10):
        params, state = step(params, state, draw(i + 1))
    before, dual = params["w"], optax.tree.get(state, "dual")["w"]
    for _ in range(20):
        params, state = step(params, state, jax.tree.map(jnp.zeros_like, params))
    asleep = np.asarray(before == 0)
    assert 100 < asleep.sum() < 500
    np.testing.assert_array_equal(params["w"] == 0, asleep)
    np.testing.assert_allclose(params["w"], before, rtol=0, atol=1e-9)
    faded = optax.tree.get(state, "dual")["w"]
    assert np.abs(dual[asleep]).max() > 0.1
    np.testing.assert_allclose(faded[asleep], 0.9**20 * dual[asleep], rtol=1e-9)
    # The dual stands for the weights at a strength that has faded with it.
    (mirror,) = bregjax.states_of(state, bregjax.MirrorState)
    assert mirror.strength is not None
    stands_for = REGULARIZERS[name].prox(0.5 * faded, 0.5 * mirror.strength)
    np.testing.assert_allclose(stands_for, params["w"], rtol=0, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_a_step_that_forgets_is_that_of_its_formula():
    tx = forgetting(bregjax.l1(), 0.8)
    params, gradient = draw(0), draw(1)
    state = tx.init(params)
    params, state = step_with(tx)(params, state, gradient)
    old, dual = np.asarray(params["w"]), np.asarray(optax.tree.get(state, "dual")["w"])
    params, state = step_with(tx)(params, state, gradient)
    evidence = 0.8 * dual + 0.2 * old / 0.5 - 0.1 * np.asarray(gradient["w"])
    new = np.asarray(params["w"])
    # The 240 with the most evidence live, with what plain descent would have made of them.
    live = np.zeros((20, 30), bool)
    live.flat[np.argsort(-np.abs(evidence), axis=None)[:240]] = True
    np.testing.assert_array_equal(new != 0, live)
    both = (old != 0) & (new != 0)
    moved = old - 0.5 * 0.1 * np.asarray(gradient["w"])
    np.testing.assert_allclose(new[both], moved[both], rtol=0, atol=1e-6)
    faded = optax.tree.get(state, "dual")["w"]
    np.testing.assert_allclose(faded[~live], evidence[~live], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_live_group_turns_the_less_the_larger_the_strength():
    """As `steer` says, by ‖θ‖ / (‖θ‖ + δ·λ·√n) of the update."""
    for strength in (0.0, 1.0, 100.0):
        tx = bregjax.linbreg(1.0, bregjax.per_neuron(), strength, delta=0.5)
        params: Any = {"w": jnp.array([[2.0], [0.0]])}
        sideways = {"w": jnp.array([[0.0], [-1e-6]])}
        after, _ = step_with(tx)(params, tx.init(params), sideways)
        share = 2.0 / (2.0 + 0.5 * strength * np.sqrt(2))
        np.testing.assert_allclose(after["w"][1, 0], 0.5e-6 * share, rtol=1e-5)


def test_groups_that_forget_learn_after_a_long_training():
    """The noise lets λ grow, and then the solution changes: only they follow it in time."""
    solutions = draw(7)["w"], draw(8)["w"]
    errors = {}
    for decay in (1.0, 0.98):
        inner = bregjax.adabreg(0.01, bregjax.per_neuron(), 1e-3, keep_weights=True)
        tx = bregjax.steer(inner, 0.5, exact=True, evidence_decay=decay)
        params: Any = {"w": jnp.zeros((20, 30))}
        state, step = tx.init(params), jax.jit(step_with(tx))
        for i in range(900):
            noise = jax.random.normal(jax.random.key(i), (20, 30))
            gradient = params["w"] - solutions[i >= 600] + noise
            params, state = step(params, state, {"w": gradient})
        live = np.asarray(params["w"] != 0)
        assert live.sum() == 300
        errors[decay] = float(jnp.abs(params["w"] - solutions[1])[live].mean())
    assert errors[0.98] < 0.5 * errors[1.0]


def test_narrow_weights_lose_nothing_by_forgetting():
    """The dual keeps what bfloat16 cannot hold: small updates add up."""
    tx = forgetting(bregjax.l1(), 0.9, target=1.0)
    params: Any = {"w": jnp.full((1, 8), 1.0, jnp.bfloat16)}
    state, step = tx.init(params), jax.jit(step_with(tx))
    for _ in range(400):
        params, state = step(params, state, {"w": jnp.full((1, 8), 0.01, jnp.bfloat16)})
    np.testing.assert_allclose(params["w"].astype(jnp.float32), 1 - 400 * 0.0005, atol=0.01)


def test_what_forgets_wrongly_raises():
    inner = bregjax.linbreg(0.1, bregjax.per_neuron(), 1.0)
    for decay in (0.0, 1.1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="evidence_decay must be"):
            bregjax.steer(inner, 0.1, exact=True, evidence_decay=decay)
    with pytest.raises(ValueError, match="evidence_decay below 1 needs exact=True"):
        bregjax.steer(inner, 0.1, evidence_decay=0.9)
    resting = bregjax.steer(bregjax.multilevel(inner, 2), 0.1, exact=True, evidence_decay=0.9)
    with pytest.raises(ValueError, match=r"inner has a multilevel.*evidence_decay=0.9 must be 1"):
        resting.init(draw(0))
