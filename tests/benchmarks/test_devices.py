import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bregjax
from benchmarks.data import Dataset, Split
from benchmarks.data.augmentation import crop_and_flip
from benchmarks.engine import devices
from benchmarks.engine.task import Task
from benchmarks.engine.training import train
from benchmarks.models.layers import ConvNorm, linear

VARIABLE = "JAX_NUM_CPU_DEVICES"


class Network(nnx.Module):
    """A convolution with batch norm: what mixes the examples of a batch."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv = ConvNorm(1, 4, 3, rngs=rngs)
        self.head = linear(6 * 6 * 4, 3, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.conv(images)).reshape(len(images), -1))


def task(batch_size: int) -> Task:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        images = rng.integers(0, 256, (n, 6, 6, 1)).astype(np.uint8)
        return Split(images, rng.integers(0, 3, n).astype(np.int32))

    dataset = Dataset("noise", split(200), split(40), split(40), mean=0.5, std=0.3, classes=3)
    return Task(dataset, lambda rngs: Network(rngs=rngs), batch_size, augment=crop_and_flip)


@pytest.mark.parametrize(
    ("seeds", "batch_size", "shape"),
    [
        (1, 128, (1, 8)),
        (1, 100, (1, 5)),  # shares are equal
        (1, 33, (1, 1)),
        (1, 31, (1, 1)),  # a share of fewer than 16 is not worth a device
        (2, 128, (2, 4)),
        (3, 64, (3, 2)),
        (5, 128, (1, 8)),  # all eight for each seed, where five would be idle else
        (5, 33, (5, 1)),
        (16, 64, (8, 1)),
    ],
)
def test_as_many_devices_as_can_have_equal_work_are_used(seeds, batch_size, shape):
    mesh = devices.mesh(seeds, batch_size)
    assert mesh.axis_names == (devices.SEEDS, devices.BATCH)
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.flat)) == mesh.size


@pytest.mark.parametrize(
    ("seeds", "count"),
    [
        pytest.param([0], 4, marks=pytest.mark.slow),
        ([0, 1], 8),
        pytest.param([0, 1, 2], 6, marks=pytest.mark.slow),
        pytest.param([0, 1, 2, 3, 4], 5, marks=pytest.mark.slow),
    ],
)
def test_many_devices_train_as_one_does(monkeypatch, seeds, count):
    """The same random numbers, statistics of whole batches, and the mean gradient."""
    run = {
        "optimizer": bregjax.linbreg(0.05, bregjax.l1(), 0.01, momentum=0.9),
        "seeds": seeds,
        "epochs": 2,
    }
    assert devices.mesh(len(seeds), 64).size == count
    many = train(task(64), **run)
    alone = jax.sharding.Mesh(
        np.asarray(jax.devices()[:1]).reshape(1, 1), (devices.SEEDS, devices.BATCH)
    )
    monkeypatch.setattr(devices, "mesh", lambda *_: alone)
    one = train(task(64), **run)
    for got, expected in zip(
        jax.tree.leaves((many.params, many.other, many.curve, many.test_loss)),
        jax.tree.leaves((one.params, one.other, one.curve, one.test_loss)),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=2e-4, atol=2e-6)


def test_the_programs_on_all_devices_of_a_seed_leave_the_same_state():
    result = train(task(64), optax.adam(1e-3), seeds=[0, 1], epochs=1)
    for leaf in jax.tree.leaves(result.params):
        for seed in range(2):
            copies = [
                np.asarray(shard.data)
                for shard in leaf.addressable_shards
                if shard.index[0] == slice(seed, seed + 1)
            ]
            assert len(copies) == 4
            for copy in copies[1:]:
                np.testing.assert_array_equal(copy, copies[0])


def test_shares_and_means_are_those_of_the_whole():
    mesh = devices.mesh(2, 64)  # 2 × 4

    def function(x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = devices.share(rows, mesh)
        return devices.mean(jnp.mean(x * part), mesh), jnp.float32(len(part))

    rows = jnp.arange(64.0) ** 2
    x = jnp.array([1.0, -3.0])
    mapped = jax.jit(devices.spread(function, mesh, (0, None)))
    means, lengths = mapped(x, rows)
    np.testing.assert_allclose(means, x * rows.mean(), rtol=1e-6)
    np.testing.assert_array_equal(lengths, [16, 16])


def count_devices(**environment: str) -> int:
    """In a new process, after `devices.one_per_core`."""
    script = "from benchmarks.engine import devices; devices.one_per_core();"
    script += "import jax; print(len(jax.devices()))"
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", VARIABLE)}
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=inherited | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(process.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not known how many cores it has")
def test_every_core_of_this_process_becomes_a_device():
    assert count_devices() == min(8, len(os.sched_getaffinity(0)))
    assert count_devices(**{VARIABLE: "3"}) == 3
    assert count_devices(XLA_FLAGS="--xla_force_host_platform_device_count=3") == 3


def test_devices_that_are_in_use_stay_as_they_are(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    before = jax.devices()
    devices.one_per_core()
    assert jax.devices() == before
