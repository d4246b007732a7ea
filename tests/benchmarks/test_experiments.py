"""Every experiment as a user starts it, on the first images of the real data."""

import json

import pytest
from test_data import needs_mnist

from benchmarks.__main__ import main

FIGURES = {
    "mnist_mlp": ["learning_curves"],
    "fashion_convnet": ["learning_curves", "learned_kernels"],
    "denoising_autoencoder": ["learning_curves", "architectures", "restored_images"],
    "densenet_search": ["learning_curves", "connections"],
    "cifar_resnet": ["learning_curves", "accuracy_and_density", "layer_densities"],
    "lenet": ["error_and_weights"],
    "target_sparsity": ["accuracy_at_targets", "steering"],
    "training_length": ["training_length"],
    "sparsity_path": ["accuracy_along_path"],
    "shrink": ["quality_and_speed"],
    "multilevel": ["accuracy_and_cost", "learning_curves"],
    "lowrank_mlp": ["learning_curves", "singular_values"],
    "lowrank_convnet": ["learning_curves", "singular_values"],
}


def check(name: str, out, *options: str) -> list[dict]:
    assert main([name, "--quick", "--out", str(out), *options]) == 0
    for figure in FIGURES[name]:
        assert (out / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    runs = json.loads((out / "summary.json").read_text())
    for run in runs:
        assert 0 <= run["density"] <= 1
        assert run["epochs"] == 2
        words = run["settings"].get("network") == "transformer"
        assert (run["test_accuracy"] is None) == (name == "denoising_autoencoder" or words)
    return runs


@needs_mnist
@pytest.mark.slow
def test_a_quick_trial_of_the_convnet(tmp_path):
    (run,) = check("fashion_convnet", tmp_path, "--only", "AdaBreg λ")
    assert set(run["densities"]) == {"conv", "conv_kernels", "dense"}
    assert run["settings"]["strength"]["dense"]["initial"] == 0.02


@needs_mnist
@pytest.mark.slow
def test_compaction_beside_the_same_training_without(tmp_path):
    options = ["--epochs", "6", "--images", "3000", "--seeds", "2", "--densities", "0.1"]
    assert main(["compaction", *options, "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert [run["seed"] for run in runs] == [0, 1] * 3
    for run in runs:
        assert run["findings"]["seconds"] > 0
        assert (run["findings"]["compactions"] > 0) == (run["kind"] == "AdaBreg, compact")
    assert (tmp_path / "compaction.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "network",
    ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("convnet", "transformer"))],
)
def test_first_networks_are_told_a_density_and_a_number_of_steps(network, tmp_path):
    options = ["--network", network, "--steps", "15", "--seeds", "2", "--sparsities", "0.9"]
    assert main(["first_network", *options, "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert len(runs) == 2 * 2
    for run in runs:
        assert run["settings"]["steps"] == 15
        target = run["settings"].get("target_density", 1.0)
        assert run["density"] == pytest.approx(target, abs=1e-3)
    assert (tmp_path / "quality_over_steps.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_trial_of_first_networks_names_the_steps_that_are_done(tmp_path):
    options = ["--quick", "--batch-size", "100", "--steps", "13", "300", "1000"]
    assert main(["first_network", *options, "--sparsities", "0.9", "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "summary.json").read_text())
    assert [run["method"] for run in runs] == [
        f"{method}, {steps} steps" for steps in (13, 26) for method in ("Adam", "AdaBreg 10.0%")
    ]
    for run in runs:
        done = run["epochs"] * (run["settings"]["images"] // 100)
        assert done == run["settings"]["steps"]
        assert "strength_share" not in run["settings"]


@pytest.mark.slow
@needs_mnist
def test_a_quick_trial_of_a_target(tmp_path):
    (run,) = check("target_sparsity", tmp_path, "--only", "AdaBreg, sparse start 5.0%")
    assert run["settings"]["target_density"] == 0.05
    assert run["nonzero"] == round(0.05 * 173_600)
    assert 0 < run["findings"]["steered_density"] < 1


@needs_mnist
@pytest.mark.slow
def test_a_quick_trial_of_shrinking(tmp_path):
    (run,) = check("shrink", tmp_path, "--densities", "0.25", "--only", "AdaBreg")
    found = run["findings"]
    assert found["shrunk_accuracy"] == run["test_accuracy"]
    assert found["shrunk_loss"] == pytest.approx(run["test_loss"], rel=1e-5)
    # A quarter of 157,600 weights in whole neurons, and the ten classes.
    groups = 784 * 50 + 200 * 20 + 800
    assert groups <= run["nonzero"] <= groups + 784 + 200
    assert found["multiply_adds"] < 0.25
    assert found["bytes"] == found["parameters"] < 0.26


@pytest.mark.slow
def test_a_quick_trial_of_shrinking_a_transformer(tmp_path):
    (run,) = check(
        "shrink", tmp_path, "--network", "transformer", "--densities", "0.5", "--only", "AdaBreg"
    )
    found = run["findings"]
    assert found["shrunk_loss"] == pytest.approx(run["test_loss"], rel=1e-5)
    assert found["parameters"] < 0.7


@needs_mnist
@pytest.mark.slow
def test_a_quick_trial_of_a_path(tmp_path):
    runs = check("sparsity_path", tmp_path, "--strengths", "4", "--strongest", "0.2")
    *path, alone = runs
    assert [run["settings"]["strength"]["final"] for run in path] == [0.05, 0.0794, 0.126, 0.2]
    densities = [run["density"] for run in path]
    assert densities == sorted(densities, reverse=True)
    assert alone["density"] == path[2]["density"]


@needs_mnist
@pytest.mark.slow
def test_a_quick_trial_of_low_rank(tmp_path):
    names = ("AdaBreg nuclear λ", "rank on plateau", "λ on plateau")
    runs = check("lowrank_mlp", tmp_path, "--only", *names)
    assert len(runs) == 3
    for run in runs:
        # Rank 12 of 784 × 200 and 200 × 80; the last layer, 80 × 10, stays whole.
        thin = 12 * (784 + 200 + 200 + 80) + 800
        assert run["findings"]["factorized_multiply_adds"] <= thin / 173_600
        assert 0 < run["findings"]["factorized_accuracy"] < 1
        assert 0 < run["findings"]["ranks"]["layers.0.kernel"] < 200


@needs_mnist
@pytest.mark.slow
def test_a_quick_trial_of_multilevel_training(tmp_path):
    dense, coarse = check("multilevel", tmp_path, "--only", "SGD", "LinBreg+m λ=0.02, m=99")
    assert dense["findings"]["multiply_adds"] == 1
    assert 0.01 < coarse["findings"]["multiply_adds"] < 0.03


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_quick_trial_of_everything(name, tmp_path):
    check(name, tmp_path)
