import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_data import needs_mnist

from benchmarks.__main__ import COMMANDS, main
from benchmarks.cli.options import named_by
from benchmarks.engine.training import train
from benchmarks.experiments.digits import Digits
from benchmarks.report.results import prepare_folder, print_table, read_runs
from benchmarks.speed.sparse_speed import products

METHODS_OF_SPARSE_SPEED = ("dense", "BCSR", "BCOO", "shrunk")

RUN_KEYS = {
    "experiment",
    "method",
    "kind",
    "settings",
    "seed",
    "epochs",
    "selected_epoch",
    "test_loss",
    "test_accuracy",
    "density",
    "densities",
    "nonzero",
    "validation_accuracy",
    "validation_loss",
    "findings",
    "seconds_per_epoch",
    "versions",
    "device",
    "commit",
    "title",
}


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "made" / "on demand"
    assert main(["digits", "--quick", "--seed", "3", "--out", str(out)]) == 0
    return out


def test_summary_has_one_run_per_method_with_the_agreed_keys(digits_folder):
    runs = json.loads((digits_folder / "summary.json").read_text())
    assert [run["kind"] for run in runs] == ["LinBreg", "AdaBreg", "SGD", "proximal SGD"]
    for run in runs:
        assert set(run) == RUN_KEYS
        assert {"learning_rate", "strength", "initial_density"} <= set(run["settings"])
        assert (run["experiment"], run["seed"], run["epochs"]) == ("digits", 3, 2)
        assert 0 < run["density"] <= 1
        assert run["densities"] == {"dense": run["density"]}
        assert run["nonzero"] == round(run["density"] * (64 * 128 + 128 * 64 + 64 * 10))


def test_in_a_trial_strengths_are_in_proportion_to_the_steps(digits_folder):
    runs = {run["kind"]: run for run in json.loads((digits_folder / "summary.json").read_text())}
    assert {run["settings"]["strength_share"] for run in runs.values()} == {2 / 40}
    # With λ for forty epochs next to nothing would wake.
    start = 410 + 410 + 32
    assert runs["LinBreg"]["nonzero"] > 2 * start
    assert runs["AdaBreg"]["nonzero"] > 2 * start


@pytest.mark.parametrize(
    ("options", "trial"),
    [({"quick": True}, True), ({"epochs": 3}, True), ({"images": 100}, True), ({}, False)],
)
def test_what_is_too_short_is_called_a_trial(options, trial):
    assert Digits(**options).is_trial == trial


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--quick"], "its numbers say nothing about the methods"),
        (["--epochs", "1", "--seeds", "1"], "shorter than the default (--epochs, --images)"),
    ],
)
def test_the_output_says_that_it_is_a_trial(options, why, tmp_path, capsys):
    assert main(["digits", *options, "--only", "SGD", "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "MLP 64-128-64-10, a trial" in said
    assert why in said


def test_metrics_have_a_line_per_epoch(digits_folder):
    lines = (digits_folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["epoch"] for row in rows] == [0, 1, 2] * 4
    assert rows[0]["train_loss"] is None
    assert rows[0]["nonzero"] == 410 + 410 + 32  # 5 % of each kernel


def test_figures_are_png_and_pdf(digits_folder):
    for name in ("learning_curves", "appearing_weights"):
        assert (digits_folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (digits_folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_redraw_needs_no_training(digits_folder):
    figure = digits_folder / "appearing_weights.png"
    figure.unlink()
    before = (digits_folder / "summary.json").stat().st_mtime_ns
    assert main(["digits", "--redraw", "--out", str(digits_folder)]) == 0
    assert figure.exists()
    assert (digits_folder / "summary.json").stat().st_mtime_ns == before


def test_a_finished_run_leaves_no_checkpoints(digits_folder):
    assert not (digits_folder / "checkpoints").exists()


def test_only_trains_what_is_named_and_keeps_the_rest(tmp_path):
    options = ["digits", "--quick", "--out", str(tmp_path)]
    assert main([*options, "--only", "SGD"]) == 0
    names = [run["method"] for run in json.loads((tmp_path / "summary.json").read_text())]
    assert names == ["SGD", "proximal SGD λ=0.001"]
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert main([*options, "--only", "LinBreg", "--seed", "1"]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert [(run["method"], run["seed"]) for run in runs] == [
        ("SGD", 0),
        ("proximal SGD λ=0.001", 0),
        ("LinBreg λ=0.1", 1),
    ]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[: len(before)] == before
    with np.load(tmp_path / "snapshots.npz") as snapshots:
        assert {key.partition("/")[0] for key in snapshots} == {run["method"] for run in runs}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b"{}"),
        ("metrics.jsonl", b"null\n"),
        ("snapshots.npz", b""),
        ("snapshots.npz", b"PK damaged"),
    ],
)
def test_a_damaged_result_is_told_with_a_way_out(tmp_path, capsys, name, content):
    (tmp_path / "summary.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text('{"method": "SGD"}\n')
    np.savez(tmp_path / "snapshots.npz", **{"SGD/weights/0": np.zeros(3)})  # pyright: ignore[reportArgumentType]
    (tmp_path / name).write_bytes(content)
    options = ["digits", "--quick", "--only", "SGD", "--out", str(tmp_path)]
    assert main(options) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{name} cannot be read" in message
    assert "writes it anew without --only" in message
    assert (tmp_path / name).read_bytes() == content


def test_a_quick_trial_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepare_folder(None, "digits", quick=True) == Path("out/digits-quick")
    assert prepare_folder(None, "digits", quick=False) == Path("out/digits")
    assert prepare_folder(Path("mine"), "digits", quick=True) == Path("mine")
    assert not list(tmp_path.iterdir())  # made when there is something to write


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "zero"),
        ("method", ["SGD"]),
        ("density", None),
        ("densities", [0.5]),
        ("settings", "fast"),
        ("test_accuracy", "good"),
        ("findings", None),
    ],
)
def test_results_of_wrong_types_are_one_clear_line(digits_folder, tmp_path, capsys, field, value):
    runs = json.loads((digits_folder / "summary.json").read_text())
    runs[1][field] = value
    (tmp_path / "summary.json").write_text(json.dumps(runs))
    (tmp_path / "metrics.jsonl").write_text((digits_folder / "metrics.jsonl").read_text())
    assert main(["digits", "--quick", "--only", "SGD", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "summary.json cannot be read" in message


def test_names_are_no_markup(digits_folder, capsys):
    runs = read_runs(digits_folder)
    print_table([dataclasses.replace(runs[0], method="[/b] λ=0.1")], "a table")
    assert "[/b] λ=0.1" in capsys.readouterr().out


def test_only_takes_what_is_on_a_keyboard():
    assert named_by(["l1", "ADAM"], ["AdaBreg ℓ1 λ=1", "Adam", "SGD"]) == ["AdaBreg ℓ1 λ=1", "Adam"]


def test_without_its_extra_one_line_says_what_to_install():
    script = "import sys, runpy; sys.modules['tyro'] = None; runpy.run_module('benchmarks')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: tyro is not installed: pip install 'bregjax[benchmarks]'.\n"


def test_an_interrupted_command_goes_on_and_ends_the_same(digits_folder, tmp_path, capsys):
    options = ["digits", "--quick", "--seed", "3", "--out", str(tmp_path)]

    def interrupt(*arguments, checkpoints, label, **options):
        def stop() -> bool:
            # In the second method, after its first epoch.
            if label.startswith("AdaBreg") and checkpoints.positions() == []:
                os.kill(os.getpid(), signal.SIGTERM)
            return options["stop"]()

        return train(*arguments, checkpoints=checkpoints, label=label, **(options | {"stop": stop}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.experiments.trainer.train", interrupt)
        assert main(options) == 128 + signal.SIGTERM
    assert "AdaBreg λ=0.1→1.2 after epoch 1 of 2, and saved" in capsys.readouterr().err
    assert main([*options[:-1], str(tmp_path), "--epochs", "1"]) == 1
    assert "is another run's (epochs: 2 there, 1 here)" in capsys.readouterr().err
    assert main(options) == 0
    expected = (digits_folder / "metrics.jsonl").read_text()
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_a_signal_in_the_last_epoch_of_a_method_starts_no_other(tmp_path, capsys):
    started = []

    def interrupt(*arguments, label, **options):
        started.append(label)
        result = train(*arguments, label=label, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.experiments.trainer.train", interrupt)
        options = ["digits", "--quick", "--out", str(tmp_path)]
        assert main(options) == 128 + signal.SIGTERM
    assert len(started) == 1
    assert [run["method"] for run in json.loads((tmp_path / "summary.json").read_text())] == started
    assert "before AdaBreg λ=0.1→1.2, and saved" in capsys.readouterr().err


def test_restart_discards_what_was_saved(tmp_path):
    (tmp_path / "checkpoints" / "SGD").mkdir(parents=True)
    options = ["digits", "--quick", "--only", "SGD", "--out", str(tmp_path)]
    assert main([*options, "--restart"]) == 0
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_the_batch_size_can_be_chosen(tmp_path):
    options = ["digits", "--quick", "--only", "proximal", "--out", str(tmp_path)]
    assert main([*options, "--batch-size", "400"]) == 0
    (large,) = json.loads((tmp_path / "summary.json").read_text())
    assert main([*options, "--batch-size", "20"]) == 0
    (small,) = json.loads((tmp_path / "summary.json").read_text())
    assert (large["settings"]["batch_size"], small["settings"]["batch_size"]) == (400, 20)
    assert small["test_accuracy"] > large["test_accuracy"]  # from 60 times as many steps


def test_step_cost_reports_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "benchmarks.speed.step_cost._SHAPES", {"conv": (3, 3, 4, 8), "head": (8, 10)}
    )
    assert main(["step_cost", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["baseline"] for row in rows[:2]] == ["SGD, momentum", "Adam"]
    assert all(row["weights"] == 9 * 4 * 8 + 80 for row in rows)
    state = {row["method"]: row["state_bytes"] for row in rows}
    assert state["LinBreg ℓ1"] == 4  # the dual
    assert state["AdaBreg ℓ1"] == pytest.approx(12, abs=0.1)  # and two moments
    assert all(row["peak_bytes"] >= row["state_bytes"] + 8 for row in rows)
    only = ["step_cost", "--quick", "--only", "exactly", "--out", str(tmp_path)]
    assert main(only) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["baseline"] for row in rows] == ["AdaBreg ℓ1", "AdaBreg per_neuron"]


@pytest.mark.slow
@needs_mnist
def test_training_cost_reports_ratios_and_the_share_of_the_peak(tmp_path):
    assert main(["training_cost", "--quick", "--only", "AdaBreg, ℓ1", "--out", str(tmp_path)]) == 0
    dense, sparse = json.loads((tmp_path / "summary.json").read_text())
    assert (dense["method"], sparse["method"]) == ("Adam", "AdaBreg, ℓ1")
    assert (dense["baseline"], sparse["baseline"]) == (None, "Adam")
    multiply_adds = 2 * 784 * 200 + 3 * (200 * 80 + 80 * 10)  # no gradient of the images
    for row in (dense, sparse):
        flops = 2 * 128 * multiply_adds / (row["milliseconds"] / 1e3)
        assert row["peak_share"] == pytest.approx(flops / (row["peak_tflops"] * 1e12))
        assert row["seconds_per_epoch"] == pytest.approx(
            row["milliseconds"] / 1e3 * (57_000 // 128)
        )


def test_shrink_speed_reports_sizes_and_speedups(tmp_path):
    assert main(["shrink_speed", "--quick", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())
    assert 0.2 < row["multiply_adds"] < 0.25  # a quarter, and the columns of the classes
    assert row["difference"] < 1e-5
    assert 0 < row["speedup_quartiles"][0] <= row["speedup"] <= row["speedup_quartiles"][1]


def test_sparse_speed_compares_the_same_product(tmp_path):
    options = ["--quick", "--batch-sizes", "3", "--densities", "0.05", "0.5"]
    assert main(["sparse_speed", *options, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["density"], row["method"]) for row in rows] == [
        (density, method) for density in (0.05, 0.5) for method in METHODS_OF_SPARSE_SPEED
    ]
    assert all(row["milliseconds"] > 0 and row["speedup"] > 0 for row in rows)
    assert {row["speedup"] for row in rows if row["method"] == "dense"} == {1}
    assert (tmp_path / "speedups.png").read_bytes().startswith(b"\x89PNG")
    inputs = jax.random.normal(jax.random.key(0), (3, 40))
    calls = products(inputs, 40, 0.1, np.random.default_rng(0))
    dense, bcsr, bcoo, shrunk = (calls[method]() for method in METHODS_OF_SPARSE_SPEED)
    np.testing.assert_allclose(bcsr, dense, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bcoo, dense, rtol=1e-5, atol=1e-5)
    assert shrunk.shape == (3, 4)


def test_lowrank_speed_reports_errors_and_speedups(tmp_path):
    assert main(["lowrank_speed", "--quick", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert {row["size"] for row in rows} == {64}
    ours = [row for row in rows if row["method"].startswith("nuclear")]
    assert [row["method"][9:] for row in ours] == ["svd", "gram", "randomized", "warm"]
    assert all(row["relative_error"] < 1e-5 for row in ours)
    assert all(row["milliseconds"] > 0 and row["speedup_over_svd"] > 0 for row in rows)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_the_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--out", "--quick", "--seed"))


@pytest.mark.parametrize("wrong", [["--epoch", "3"], ["--epochs", "1.5"]])
def test_a_mistake_in_an_option_leads_to_the_help_of_the_same_command(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["digits", *wrong])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    commands = re.findall(r"python .*(?= --help)", said)
    assert set(commands) == {"python -m benchmarks digits"}
    assert "--epochs INT" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "unknown experiment 'cifar'; there are: any_optimizer, cifar_resnet, compa"),
        (["digits", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["digits", "--seeds", "-1"], "--seeds must be at least 1, got -1"),
        (["digits", "--patience", "0"], "--patience must be at least 1, got 0"),
        (["digits", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["lowrank_mlp", "--hidden", "30", "0"], "--hidden must be positive widths, got 30 0."),
        (["training_cost", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["training_cost", "--precision", "bfloat16"], "--precision bfloat16 is for the residual"),
        (["digits", "--only", "Lion"], "--only Lion: there are only LinBreg λ=0.1, AdaBreg"),
        (["mnist_mlp", "--data-dir", "/nowhere"], "mnist was not found in /nowhere"),
        (["digits", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["digits", "--redraw", "--out", "EMPTY"], "run the experiment first"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path / "empty") if a == "EMPTY" else a for a in arguments]
    assert main(arguments) != 0
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
