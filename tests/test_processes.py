"""Two processes with half of the devices each compute what one process does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sharded import TRANSFORMATIONS, assert_as_on_one_device

NAMES = [
    "l1",
    "per_neuron",
    "nuclear",
    "steer, exact",
    "landing",
    "multilevel",
    "adabreg_to_density",
]
PROCESSES, SECONDS = 2, 300


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return f"localhost:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The parameters of each training, as the first process gathered them."""
    file, address = tmp_path_factory.mktemp("processes") / "found.npz", free_address()
    devices = "--xla_force_host_platform_device_count"
    flags = os.environ["XLA_FLAGS"].replace(f"{devices}=8", f"{devices}={8 // PROCESSES}")
    script = Path(__file__).parent / "one_of_several_processes.py"
    started = [
        subprocess.Popen(
            [sys.executable, script, address, str(PROCESSES), str(index), file, *NAMES],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    try:
        output = [process.communicate(timeout=SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in started), "\n".join(output)
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one_device(name, found):
    leaves = [x for key, x in found.items() if key.startswith(f"{name}/")]
    assert len(leaves) == 3
    assert_as_on_one_device(leaves, TRANSFORMATIONS[name])
