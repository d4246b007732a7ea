"""Whole training runs of the authors' PyTorch code, reproduced in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bregjax

REGULARIZERS = {"l1": bregjax.l1(), "l1_l2": bregjax.per_neuron()}
OPTIMIZERS = {
    "LinBreg": bregjax.linbreg,
    "AdaBreg": bregjax.adabreg,
    "ProxSGD": bregjax.prox_sgd,
}


def logits_of(params: dict, x: jax.Array) -> jax.Array:
    """ReLU after every layer, the last one too."""
    for layer in params.values():
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x


def mean_loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), y)
    return losses.mean()


def read_params(data: dict, when: str) -> dict:
    """Kernels are PyTorch's weights transposed."""
    return {
        f"layer{i}": {
            "kernel": jnp.asarray(data[f"W{i}_{when}"].T),
            "bias": jnp.asarray(data[f"b{i}_{when}"]),
        }
        for i in range(len(data["sizes"]) - 1)
    }


def train(data: dict, tx: optax.GradientTransformation) -> dict[str, Any]:
    factor, patience, threshold = data["plateau"]
    # torch reduces the rate after more than `patience` bad epochs, Optax after as many, hence the
    # one more. Otherwise they agree: a bad epoch is not below (1 − threshold)·best.
    plateau = optax.contrib.reduce_on_plateau(
        factor=float(factor), patience=int(patience) + 1, rtol=float(threshold), cooldown=0
    )
    batch, rate = int(data["batch"]), float(data["lr"])
    x = ((data["x"] - data["mean"]) / data["std"]).reshape(len(data["x"]), -1)
    params = read_params(data, "init")
    state: Any = tx.init(params)
    plateau_state: Any = plateau.init(params)

    observe, density = jax.jit(plateau.update), jax.jit(bregjax.density)

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(mean_loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    history: dict[str, list] = {name: [] for name in ("loss", "sum", "rate", "density")}
    for _ in range(int(data["epochs"])):
        current = rate * plateau_state.scale
        optax.tree.get(state, "hyperparams")["learning_rate"] = current
        losses = []
        for start in range(0, len(x), batch):
            stop = start + batch
            params, state, loss = step(params, state, x[start:stop], data["y"][start:stop])
            losses.append(float(loss))
        _, plateau_state = observe({}, plateau_state, value=sum(losses))
        history["loss"] += losses
        history["sum"].append(sum(losses))
        history["rate"].append(float(current))
        history["density"].append(float(density(params)))
    return {"params": params, "state": state, "logits": logits_of(params, x[:8]), **history}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("optimizer", "regularizer"), [("LinBreg", "l1"), ("AdaBreg", "l1_l2"), ("ProxSGD", "l1")]
)
def test_training_run(reference, optimizer, regularizer):
    with np.load(reference / f"e2e_mlp__{optimizer}__{regularizer}.npz") as file:
        data = dict(file)
    hyperparams = {"learning_rate": float(data["lr"]), "strength": float(data["lam"])}
    if optimizer != "ProxSGD":
        hyperparams["delta"] = float(data["delta"])
    tx = optax.inject_hyperparams(OPTIMIZERS[optimizer])(
        regularizer=REGULARIZERS[regularizer], **hyperparams
    )
    # Optax's plateau and Adam mix integers and floats, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        run = train(data, tx)

    def close(actual: Any, expected: Any) -> None:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)

    close(run["loss"], data["batch_losses"])
    close(run["sum"], data["epoch_loss_sums"])
    close(run["rate"], data["epoch_lr"])
    # Densities are float32.
    np.testing.assert_allclose(run["density"], data["linear_density"], rtol=1e-7)
    close(run["logits"], data["logits_final"])
    jax.tree.map(close, run["params"], read_params(data, "final"))
    for i, (name, layer) in enumerate(run["params"].items()):
        kernel = layer["kernel"]
        np.testing.assert_array_equal(kernel == 0, data[f"W{i}_final"].T == 0)
        live = bregjax.live_groups(kernel, bregjax.per_neuron())
        assert float(live.mean()) == data["node_density_final"][i]
        if optimizer != "ProxSGD":
            dual = optax.tree.get(run["state"], "dual")[name]
            close(dual["kernel"], data[f"W{i}_dual_final"].T)
            assert isinstance(dual["bias"], optax.MaskedNode)
