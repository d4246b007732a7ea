"""Two epochs with bregjax and with the authors' PyTorch package, from the same start."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bregjax
from benchmarks import data
from benchmarks.data.batches import epoch_order
from benchmarks.engine import devices
from benchmarks.experiments.mnist import PAPER
from benchmarks.methods import SparseStart
from benchmarks.methods.regularization import Penalty, Regularization
from benchmarks.models import MLP, ConvNet

_UPDATES = 100  # optimizer steps that are timed together


class Case(NamedTuple):
    """A network, and how it is trained."""

    dataset: str
    network: Callable[..., nnx.Module]
    optimizer: str
    """``linbreg`` or ``adabreg``, which both packages have"""
    learning_rate: float
    strengths: Mapping[str, float]
    """λ of ℓ1 on ``dense`` kernels, and of the group norm on ``conv`` kernels"""
    mixed: bool = False
    """products in bfloat16 on both sides; parameters, duals and losses stay float32"""


_MLP = partial(MLP, PAPER)
_LINBREG = Case("mnist", _MLP, "linbreg", 0.1, {"dense": 0.1})
_ADABREG = Case("mnist", _MLP, "adabreg", 5e-3, {"dense": 0.3})
CASES = {
    "MLP, LinBreg": _LINBREG,
    "MLP, AdaBreg": _ADABREG,
    "MLP bfloat16, LinBreg": _LINBREG._replace(mixed=True),
    "MLP bfloat16, AdaBreg": _ADABREG._replace(mixed=True),
    "ConvNet, LinBreg": Case(
        "fashion_mnist", ConvNet, "linbreg", 0.1, {"conv": 0.05, "dense": 0.05}
    ),
    "ConvNet, AdaBreg": Case(
        "fashion_mnist", ConvNet, "adabreg", 3e-3, {"conv": 0.05, "dense": 0.1}
    ),
}


class Problem(NamedTuple):
    """The numbers that both sides start from."""

    parameters: list[np.ndarray]
    """bias and kernel of each layer, in Flax's layouts"""
    images: np.ndarray
    """(n, height, width, channels), normalized"""
    labels: np.ndarray
    order: np.ndarray
    """(steps, batch): which images are in which batch"""


class Run(NamedTuple):
    """What one side measured."""

    losses: np.ndarray
    """before each step of the first epoch"""
    seconds: float
    """the time of the second epoch; the first one is for warming up"""
    update_seconds: float
    """the time of one optimizer step, given the gradient"""


def make_problem(name: str, seed: int, data_dir: Path | None, steps: int | None) -> Problem:
    """A problem with the first ``steps`` steps of an epoch, or all; both epochs are the same."""
    dataset = data.load(CASES[name].dataset, data_dir)
    model_key, start_key, order_key = jax.random.split(jax.random.key(seed), 3)
    params = nnx.state(CASES[name].network(rngs=nnx.Rngs(model_key)), nnx.Param)
    params = SparseStart(0.01)(start_key, params)
    return Problem(
        [np.asarray(leaf) for leaf in jax.tree.leaves(params)],
        np.asarray(dataset.normalize(jnp.asarray(dataset.train.inputs))),
        dataset.train.targets,
        np.asarray(epoch_order(order_key, len(dataset.train), 128))[:steps],
    )


def ours(name: str, problem: Problem) -> Run:
    """Train with bregjax: the epoch is one program over data on the device."""
    case = CASES[name]
    if "conv" in case.strengths:
        devices.one_per_core()
    dtype = jnp.bfloat16 if case.mixed else None
    graphdef, params = nnx.split(case.network(dtype=dtype, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.unflatten(
        jax.tree.structure(params), [jnp.asarray(leaf) for leaf in problem.parameters]
    )
    penalties = {"dense": bregjax.l1(), "conv": bregjax.per_kernel()}
    regularization = Regularization(
        {kind: Penalty(penalties[kind], strength) for kind, strength in case.strengths.items()}
    )
    make = partial(getattr(bregjax, case.optimizer), case.learning_rate)
    optimizer = regularization.optimizer(make, len(problem.order))
    mesh = devices.mesh(1, problem.order.shape[1])

    def update(state: Any, gradient: Any) -> Any:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def epoch(state: Any, images: jax.Array, labels: jax.Array, order: jax.Array) -> Any:
        def step(state: Any, batch: jax.Array) -> Any:
            batch = devices.share(batch, mesh)

            def loss_fn(params: Any) -> jax.Array:
                logits = nnx.merge(graphdef, params)(images[batch])
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

            loss, gradient = devices.mean(jax.value_and_grad(loss_fn)(state[0]), mesh)
            return update(state, gradient), loss

        return jax.lax.scan(step, state, order)

    @partial(jax.jit, donate_argnums=0)
    def updates(state: Any, gradient: Any) -> Any:
        return jax.lax.fori_loop(0, _UPDATES, lambda _, state: update(state, gradient), state)

    start = (params, optimizer.init(params))
    state = devices.place(jax.tree.map(lambda x: x[None], start), mesh, devices.SEEDS)
    arrays = devices.place(problem[1:], mesh)
    run_epoch = devices.spread(epoch, mesh, (0, None, None, None))
    run_epoch = jax.jit(run_epoch, donate_argnums=0).lower(state, *arrays).compile()
    gradient = jax.tree.map(jnp.ones_like, params)
    run_updates = updates.lower(start, gradient).compile()
    state, losses = run_epoch(state, *arrays)
    jax.block_until_ready(losses)
    _, seconds = _timed(lambda: jax.block_until_ready(run_epoch(state, *arrays)))
    _, update_seconds = _timed(lambda: jax.block_until_ready(run_updates(start, gradient)))
    return Run(np.asarray(losses[0]), seconds, update_seconds / _UPDATES)


def theirs(name: str, problem: Problem) -> Run:
    """Train with the authors' package, in the usual way of PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    from bregman import optimizers, regularizers  # pyright: ignore[reportMissingImports]
    from torch.nn import Conv2d, Linear  # pyright: ignore[reportMissingImports]
    from torch.nn.functional import cross_entropy  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case = CASES[name]
    network = _torch_network(problem.parameters)
    images = torch.tensor(problem.images).permute(0, 3, 1, 2).contiguous()
    labels, order = torch.tensor(problem.labels).long(), torch.tensor(problem.order).long()

    class Kernels(regularizers.L12):
        """The group norm of the package, on the (out·in, kh·kw) matrix of a kernel."""

        def prox(self, x: Any, delta: float = 1.0) -> Any:
            return super().prox(x.flatten(0, 1).flatten(1), delta).view_as(x)

        def sub_grad(self, x: Any) -> Any:
            return super().sub_grad(x.flatten(0, 1).flatten(1)).view_as(x)

    kinds = {"dense": (Linear, regularizers.L1), "conv": (Conv2d, Kernels)}
    groups: list[dict[str, Any]] = [
        {"params": [x for x in network.parameters() if x.ndim == 1], "reg": regularizers.Null()}
    ]
    for kind, strength in case.strengths.items():
        layer, regularizer = kinds[kind]
        weights = [module.weight for module in network if isinstance(module, layer)]
        groups.append({"params": weights, "reg": regularizer(rc=strength)})
    theirs = {"linbreg": optimizers.LinBreg, "adabreg": optimizers.AdaBreg}[case.optimizer]
    optimizer = theirs(groups, lr=case.learning_rate)

    def epoch() -> list[Any]:
        losses = []
        for batch in order:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.mixed):
                logits = network(images.index_select(0, batch))
            loss = cross_entropy(logits.float(), labels[batch])
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
        return losses

    def updates() -> None:
        for _ in range(_UPDATES):
            optimizer.step()

    losses = epoch()
    _, seconds = _timed(epoch)
    _, update_seconds = _timed(updates)
    return Run(torch.stack(losses).numpy(), seconds, update_seconds / _UPDATES)


def _torch_network(parameters: list[np.ndarray]) -> Any:
    """The network with these biases and kernels."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    modules: list[nn.Module] = []
    channels = parameters[1].shape[-1] if parameters[1].ndim == 4 else 1
    for bias, kernel in zip(parameters[::2], parameters[1::2], strict=True):
        if kernel.ndim == 4:
            channels = kernel.shape[-1]
            layer = nn.Conv2d(kernel.shape[2], channels, kernel.shape[:2])
            weight = kernel.transpose(3, 2, 0, 1)
            after = [nn.MaxPool2d(2), nn.ReLU()]
        else:
            if not any(isinstance(module, nn.Linear) for module in modules):
                # From (pixel, channel) to (channel, pixel).
                modules.append(nn.Flatten())
                pixels = kernel.reshape(-1, channels, kernel.shape[1])
                kernel = pixels.swapaxes(0, 1).reshape(kernel.shape)
            layer = nn.Linear(*kernel.shape)
            weight = kernel.T
            after = [nn.ReLU()]
        layer.weight, layer.bias = (nn.Parameter(torch.tensor(x)) for x in (weight, bias))
        modules += [layer, *after]
    return nn.Sequential(*modules[:-1])  # no ReLU after the logits


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
