"""Real processes, killed for real."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "interruptible.py"
ROOT = SCRIPT.parents[2]
COMPILED = tempfile.TemporaryDirectory(prefix="bregjax-interrupted-")


def begin(folder: Path, result: Path) -> subprocess.Popen:
    # What a killed process leaves half-written is read by these processes only.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
    }
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder, result],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def positions(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def wait_for_progress(process: subprocess.Popen, folder: Path) -> None:
    """Until this process has begun to write a checkpoint, or has ended."""
    before = positions(folder)
    while process.poll() is None and positions(folder) <= before:
        time.sleep(0.002)


def assert_same_bits(first: Path, second: Path) -> None:
    with np.load(first) as one, np.load(second) as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(begin(folder / "checkpoints", folder / "result.npz"))
    return folder / "result.npz"


def kill_until(kills: int, tmp_path: Path, expected: Path, seed: int) -> None:
    """Kill trainings at random moments, checkpoint writing included, and compare the ends."""
    rng = random.Random(seed)
    done = run = 0
    while done < kills:
        folder, result = tmp_path / f"run{run}", tmp_path / f"result{run}.npz"
        run += 1
        finished = False
        while done < kills and not finished:
            process = begin(folder, result)
            wait_for_progress(process, folder)
            # A checkpoint takes about 50 ms to write, an epoch a few.
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            finished = process.returncode == 0
            done += not finished
        if not finished:
            finish(begin(folder, result))
        assert_same_bits(result, expected)


def test_killed_trainings_end_with_the_same_bits(tmp_path, uninterrupted):
    kill_until(1, tmp_path, uninterrupted, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path, uninterrupted):
    kill_until(100, tmp_path, uninterrupted, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(number, tmp_path, uninterrupted):
    folder, result = tmp_path / "checkpoints", tmp_path / "result.npz"
    process = begin(folder, result)
    wait_for_progress(process, folder)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert not result.exists()
    finish(begin(folder, result))
    assert_same_bits(result, uninterrupted)
