import json

import numpy as np
import pytest

from benchmarks import data
from benchmarks.cli.errors import BenchmarkError
from benchmarks.data import Dataset, Split
from benchmarks.speed import peers
from benchmarks.speed.peer_training import CASES, make_problem, ours, theirs
from benchmarks.speed.peers import Peers

pytest.importorskip("torch")
pytest.importorskip("bregman")


@pytest.fixture(autouse=True)
def _little_data(monkeypatch):
    """Noisy images, ten classes told apart by a bright row."""

    def load(name, data_dir):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 10, 1280).astype(np.int32)
        images = rng.integers(0, 100, (1280, 28, 28, 1)).astype(np.uint8)
        images[np.arange(1280), 2 * labels + 4] += 120
        split = Split(images, labels)
        return Dataset(name, split, split, split, mean=0.3, std=1.0)

    monkeypatch.setattr(data, "load", load)


@pytest.mark.parametrize("name", CASES)
def test_both_sides_compute_the_same_losses(name):
    problem = make_problem(name, 0, None, 10)
    mine, other = ours(name, problem), theirs(name, problem)
    assert mine.losses.shape == (10,)
    assert mine.losses[-1] < mine.losses[0]
    np.testing.assert_allclose(mine.losses, other.losses, rtol=1e-4)


def test_command_writes_a_row_per_case_and_number_of_threads(tmp_path, capsys):
    Peers(quick=True, only=("MLP, LinBreg",), threads=(1,), out=tmp_path).run()
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert (row["case"], row["threads"], row["repeats"]) == ("MLP, LinBreg", 1, 1)
    assert row["steps"] == 10
    assert row["largest_difference"] < 1e-4
    assert row["speedup"] == row["peer_seconds_per_epoch"] / row["seconds_per_epoch"]
    assert {"torch", "bregman-learning", "jax"} <= set(row["versions"])
    assert "MLP, LinBreg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": (0,)}, "--threads must be from 1"),
        ({"threads": (10**6,)}, "--threads must be from 1"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"only": ("nothing",)}, "there are only MLP"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(BenchmarkError, match=message):
        Peers(**options).run()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match="torch is not installed"):
        Peers().run()
