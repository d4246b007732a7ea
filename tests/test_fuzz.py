"""Whatever is passed, a call works or raises an error that names the argument."""

import fractions
import inspect
import random
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from bregjax import baselines

KEY = jax.random.key(0)
PARAMS = {"dense": {"kernel": jnp.ones((3, 4)).at[0, 1].set(0.0), "bias": jnp.zeros(4)}}
DUALS = jax.tree.map(lambda x: 2 * x, PARAMS)
L1 = bregjax.l1()
LINBREG = bregjax.linbreg(0.1, L1, 0.5)


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.first(x)))


def apply(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["dense"]["kernel"] + params["dense"]["bias"]


# A value that makes sense, by the name of the parameter.
GOOD: dict[str, Any] = {
    "all_but": None,
    "apply": apply,
    "axis": 0,
    "before": None,
    "base": None,
    "base_dual": DUALS,
    "base_params": PARAMS,
    "count": None,
    "densities": [0.5, 0.1],
    "density": 0.5,
    "dual": DUALS,
    "every": 2,
    "example": jnp.ones((2, 3)),
    "final": 0.1,
    "gradients": PARAMS,
    "groups": L1,
    "grow": "gradient",
    "inner": LINBREG,
    "key": KEY,
    "kind": bregjax.MirrorState,
    "learning_rate": 0.1,
    "m": 2,
    "model": Network(nnx.Rngs(0)),
    "momentum": None,
    "nesterov": False,
    "opt_state": LINBREG.init(PARAMS),
    "optimizer": LINBREG,
    "other_dual": PARAMS,
    "other_params": DUALS,
    "outputs": None,
    "params": PARAMS,
    "path": jax.tree_util.tree_leaves_with_path(PARAMS)[0][0],
    "plateau": optax.contrib.reduce_on_plateau(),
    "rank": 1,
    "regularizer": L1,
    "rules": {"*kernel": 1.0, "*": 0.0},
    "scores": [0.9, 0.8],
    "shrunk": bregjax.shrink_params(apply, PARAMS, jnp.ones((2, 3))),
    "start": 1,
    "state": LINBREG.init(PARAMS),
    "step": 2,
    "steps": 10,
    "stop": 9,
    "strength": 0.5,
    "target": 0.5,
    "tolerance": 0.1,
    "tuner": optax.sgd(0.1),
    "x": PARAMS["dense"]["kernel"],
}
# Where the same name means something else.
SPECIAL: dict[str, dict[str, Any]] = {
    "grow_rank_on_plateau": {
        "inner": bregjax.linbreg(0.1, bregjax.nuclear(rank=lambda count: 1), 0.5),
    },
    "dynamic_sparsity": {"grow": "random"},
    "load_sparse": {"path": "network.safetensors"},
    "multilevel": {"inner": LINBREG},
    "shrink_optimizer": {
        "optimizer": nnx.Optimizer(Network(nnx.Rngs(0)), LINBREG, wrt=nnx.Param),
        "shrunk": bregjax.shrink(Network(nnx.Rngs(0)), jnp.ones((2, 3))),
    },
    "unshrink_state": {"before": LINBREG.init(PARAMS)},
    "save_sparse": {"path": "saved.safetensors"},
    "soft_bernoulli": {"key": 0},
}
# What a function returns is put to its use.
USES: dict[str, Any] = {
    "sparse_initializer": lambda made: made(KEY, (3, 4)),
    "cubic_density_schedule": lambda made: made(3),
    "label_by_path": lambda made: made(PARAMS),
}


class Odd:
    def __repr__(self) -> str:
        return "Odd()"


BAD: dict[str, Any] = {
    "None": None,
    "text": "text",
    "no text": "",
    "bytes": b"text",
    "True": True,
    "NaN": float("nan"),
    "inf": float("inf"),
    "0": 0,
    "-1": -1,
    "-0.5": -0.5,
    "2.5": 2.5,
    "7": 7,
    "2**31": 2**31,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "complex": 1j,
    "fraction": fractions.Fraction(1, 2),
    "array of one": jnp.array(0.5),
    "array of one in a row": jnp.ones(1),
    "negative array": np.array([-1.0]),
    "NumPy NaN": np.float32("nan"),
    "NumPy bool": np.bool_(True),
    "array of another shape": jnp.ones((2, 3, 5)),
    "empty": jnp.zeros((0,)),
    "empty matrix": np.zeros((0, 4)),
    "NaN matrix": jnp.full((3, 4), jnp.nan),
    "integers": jnp.arange(12).reshape(3, 4),
    "booleans": jnp.ones((3, 4), bool),
    "complex array": jnp.ones((3, 4), complex),
    "objects": np.array([None, "x"]),
    "texts": np.array(["text"]),
    "shape alone": jax.ShapeDtypeStruct((3, 4), jnp.float32),
    "key": KEY,
    "two keys": jax.random.split(KEY),
    "Rngs": nnx.Rngs(0),
    "stream": nnx.Rngs(0).params,
    "function to None": lambda *_, **__: None,
    "function to text": lambda *_, **__: "text",
    "factory": bregjax.l1,
    "factory of Optax": optax.sgd,
    "type": int,
    "regularizer": L1,
    "nuclear": bregjax.nuclear(),
    "transformation": optax.adam(0.1),
    "linbreg": LINBREG,
    "object": Odd(),
    "list": [],
    "tuple": (),
    "dict": {},
    "list of texts": ["text", 1],
    "tuple of axes": (0, 1),
    "tree with None": {"dense": {"kernel": None, "bias": jnp.zeros(4)}},
    "tree of None": {"dense": {"kernel": None, "bias": None}},
    "tree of texts": {"dense": {"kernel": "text", "bias": "text"}},
    "tree of integers": {"dense": {"kernel": jnp.ones((3, 4), int), "bias": jnp.zeros(4, int)}},
    "tree of other shapes": {"dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(5)}},
    "tree of numbers": {"dense": {"kernel": 1.0, "bias": 0.0}},
    "other tree": {"conv": jnp.ones((2, 2))},
    "array": jnp.ones((3, 4)),
}
PAIRS = 1000


def public() -> dict[str, Any]:
    modules = (bregjax, baselines)
    names = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {name: x for name, x in names.items() if inspect.isfunction(x)}


FUNCTIONS = public()


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """All but those that are passed on to an inner function, such as ``**extra_args``."""
    found = inspect.signature(FUNCTIONS[name]).parameters.items()
    return {key: x for key, x in found if x.kind is not x.VAR_KEYWORD}


def good(name: str) -> dict[str, Any]:
    """The arguments of a call that works."""
    known = GOOD | SPECIAL.get(name, {})
    return {
        key: known[key]
        if parameter.default is parameter.empty or key in known
        else parameter.default
        for key, parameter in parameters(name).items()
    }


def fault_of(name: str, changes: dict[str, str]) -> str | None:
    """What is wrong with how a call with such arguments ends."""
    positional, named = [], {}
    arguments = good(name) | {key: BAD[value] for key, value in changes.items()}
    for key, parameter in parameters(name).items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[key] = arguments[key]
        else:
            positional.append(arguments[key])
    try:
        use(name, FUNCTIONS[name](*positional, **named))
    except FileNotFoundError:  # its message has the path
        return None
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        words = set(re.findall(r"\w+", " ".join([str(error), *notes])))
        # What a function raises that was passed is its own, with a note that names it.
        if (notes or type(error) in (TypeError, ValueError)) and words & {*changes}:
            return None
        what = error
    else:
        return None
    return f"{name}({changes}): {type(what).__name__}: {str(what)[:300]}"


def use(name: str, result: Any) -> None:
    if name in USES:
        USES[name](result)
    elif isinstance(result, optax.GradientTransformation) and callable(result.init):
        state = result.init(PARAMS)
        jax.eval_shape(
            optax.with_extra_args_support(result).update, PARAMS, state, PARAMS, value=1.0
        )
    elif isinstance(result, bregjax.Regularizer):
        x = PARAMS["dense"]["kernel"]
        jax.eval_shape(lambda x: (result.value(x), result.prox(x, 1.0), result.subgradient(x)), x)
    elif isinstance(result, bregjax.SteeringRule):
        result.update(jnp.float32(1), jnp.float32(0.1), result.init())


def single_changes(name: str) -> Iterator[dict[str, str]]:
    for parameter in parameters(name):
        for value in BAD:
            yield {parameter: value}


def two_changes() -> Iterator[tuple[str, dict[str, str]]]:
    draw = random.Random(0)
    several = [name for name in FUNCTIONS if len(parameters(name)) > 1]
    for _ in range(PAIRS):
        name = draw.choice(several)
        yield name, {p: draw.choice(list(BAD)) for p in draw.sample(list(parameters(name)), 2)}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A folder of its own, and the promotion of dtypes that users have."""
    monkeypatch.chdir(tmp_path)
    bregjax.save_sparse("network.safetensors", PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_bad_argument(name):
    assert fault_of(name, {}) is None
    faults = [fault for changes in single_changes(name) if (fault := fault_of(name, changes))]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_two_bad_arguments():
    faults = [fault for name, changes in two_changes() if (fault := fault_of(name, changes))]
    assert not faults, "\n".join(faults)
