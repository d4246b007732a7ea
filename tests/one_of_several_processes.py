"""Trains on a mesh over the devices of several processes; the first writes what comes out."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType


def main(address: str, processes: int, index: int, file: Path, *names: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, processes, index)
    from sharded import TRANSFORMATIONS, make_mesh, train_on  # building them looks for devices

    mesh = make_mesh(AxisType.Explicit)
    assert {device.process_index for device in mesh.devices.flat} == set(range(processes))
    found = {}
    for name in names:
        params = train_on(mesh, TRANSFORMATIONS[name])
        whole = multihost_utils.process_allgather(params, tiled=True)
        found |= {f"{name}/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(whole))}
    if index == 0:
        np.savez(file, **found)


if __name__ == "__main__":
    address, processes, index, file, *names = sys.argv[1:]
    main(address, int(processes), int(index), Path(file), *names)
