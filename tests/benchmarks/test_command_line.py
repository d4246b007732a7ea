import json

import pytest

from benchmarks.__main__ import COMMANDS, main

RUN_KEYS = {
    "experiment",
    "method",
    "settings",
    "seed",
    "epochs",
    "test_accuracy",
    "density",
    "densities",
    "nonzero",
    "seconds_per_epoch",
    "versions",
    "device",
    "commit",
}


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "made" / "on demand"
    assert main(["digits", "--quick", "--seed", "3", "--out", str(out)]) == 0
    return out


def test_summary_has_one_run_per_method_with_the_agreed_keys(digits_folder):
    runs = json.loads((digits_folder / "summary.json").read_text())
    assert [run["method"].split()[0] for run in runs] == ["LinBreg", "AdaBreg", "SGD", "proximal"]
    for run in runs:
        assert set(run) == RUN_KEYS
        assert {"learning_rate", "strength", "initial_density"} <= set(run["settings"])
        assert (run["experiment"], run["seed"], run["epochs"]) == ("digits", 3, 2)
        assert 0 < run["density"] <= 1
        assert run["densities"] == {"dense": run["density"]}
        assert run["nonzero"] == round(run["density"] * (64 * 128 + 128 * 64 + 64 * 10))


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


def test_step_cost_reports_ratios(tmp_path):
    assert main(["step_cost", "--quick", "--repeats", "1", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["baseline"] for row in rows[:2]] == ["SGD, momentum", "Adam"]
    assert all(row["weights"] == 11_164_352 for row in rows)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_names_the_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--out", "--quick", "--seed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "unknown experiment 'cifar'; there are: digits, mnist_mlp"),
        (["digits", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["digits", "--seeds", "-1"], "--seeds must be at least 1, got -1"),
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
