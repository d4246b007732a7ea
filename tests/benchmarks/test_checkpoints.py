import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cli.errors import BenchmarkError
from benchmarks.engine.checkpoints import Checkpoints


def state(width: int = 3) -> dict:
    key = jax.random.key(7)
    return {
        "weights": jax.random.normal(key, (2, width)),
        "half": jnp.ones(4, jnp.bfloat16) / 3,
        "count": jnp.int32(5),
        "live": jnp.array([True, False]),
        "key": key,
    }


HISTORY = {"rows": {"loss": np.array([1.0, np.nan])}, "seconds": np.array([0.5])}


def template(width: int = 3):
    return jax.eval_shape(lambda: state(width))


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    Checkpoints(tmp_path / "run", {"rate": 0.1}).save(12, state(), HISTORY, must=True)
    saved = Checkpoints(tmp_path / "run", {"rate": 0.1}).restore(template())
    assert saved is not None
    assert saved.position == 12
    expected = state()
    assert saved.state.keys() == expected.keys()
    for name, leaf in expected.items():
        assert saved.state[name].dtype == leaf.dtype
    np.testing.assert_array_equal(
        jax.random.key_data(saved.state.pop("key")), jax.random.key_data(expected.pop("key"))
    )
    for name, leaf in expected.items():
        np.testing.assert_array_equal(saved.state[name], leaf)
    np.testing.assert_array_equal(saved.history["rows"]["loss"], HISTORY["rows"]["loss"])


def test_there_is_nothing_to_go_on_from_at_first(tmp_path):
    assert Checkpoints(tmp_path / "run", {}).restore(template()) is None
    assert not (tmp_path / "run").exists()


def test_the_last_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    for position in (1, 2, 3):
        checkpoints.save(position, state(), HISTORY)
    assert checkpoints.positions() == [2, 3]


def test_saving_waits_unless_it_must(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=3600)
    checkpoints.save(1, state(), HISTORY)
    assert checkpoints.positions() == []
    checkpoints.save(2, state(), HISTORY, must=True)
    assert checkpoints.positions() == [2]


def test_what_a_killed_writer_left_is_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.save(1, state(), HISTORY)
    (tmp_path / "run" / "2.orbax-checkpoint-tmp").mkdir()
    saved = checkpoints.restore(template())
    assert saved is not None
    assert saved.position == 1


@pytest.mark.parametrize(
    ("about", "width", "difference"),
    [
        ({"rate": 0.2}, 3, "rate: 0.1 there, 0.2 here"),
        ({"rate": 0.1}, 4, r"\['weights'\]: float32\[2, 3\] there, float32\[2, 4\] here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, about, width, difference):
    Checkpoints(tmp_path / "run", {"rate": 0.1}).save(1, state(), HISTORY, must=True)
    other = Checkpoints(tmp_path / "run", about)
    with pytest.raises(BenchmarkError, match=f"another run's \\({difference}\\).*--restart"):
        other.restore(template(width))
    assert other.positions() == [1]


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.save(1, state(), HISTORY)
    for path in (tmp_path / "run" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(BenchmarkError, match="cannot be read") as caught:
        checkpoints.restore(template())
    assert "\n" not in str(caught.value)


def test_a_damaged_array_is_told_with_the_reason(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=0)
    checkpoints.save(1, state(), HISTORY)
    for path in (tmp_path / "run" / "1" / "state" / "d").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BenchmarkError, match=r"Error decoding .* but received: 0x00") as caught:
        checkpoints.restore(template())
    assert "recheck_cached" not in str(caught.value)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/SGD"])
def test_a_file_in_the_place_of_the_folder_is_told_before_the_training(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(BenchmarkError, match=f"{file} is a file .*: move it away"):
        Checkpoints(tmp_path / "checkpoints" / "SGD", {}).restore(template())
    assert file.read_text() == "mine"


_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from benchmarks.engine.checkpoints import Checkpoints
from benchmarks.cli.errors import BenchmarkError

checkpoints = Checkpoints(Path(sys.argv[1]), {}, seconds=0)
small, large = (
    {str(i): jnp.arange(n, dtype=jnp.float32) ** (1 + i / 20) for i in range(20)}
    for n in (10, 300_000)
)
checkpoints.save(1, small, {"seconds": np.zeros(1)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, large, {"seconds": np.zeros(1)})
except BenchmarkError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(Checkpoints(Path(sys.argv[1]), {}).positions())
"""


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path):
    # A limit on the size of files makes writing fail as a full disk does, with another number.
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""  # nothing of the twenty writes that fail, late ones included
    message, positions = done.stdout.strip().splitlines()
    assert message.startswith(f"cannot write a checkpoint to {tmp_path / 'run'}")
    assert "run the same command again" in message
    assert positions == "[1]"


def test_the_next_checkpoint_waits_from_the_last_one(tmp_path, monkeypatch):
    now = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("benchmarks.engine.checkpoints.time", clock)
    checkpoints = Checkpoints(tmp_path / "run", {}, seconds=30)
    for position, now in ((1, 31.0), (2, 60.0), (3, 61.0)):  # noqa: B007
        checkpoints.save(position, state(), HISTORY)
    assert checkpoints.positions() == [1, 3]
