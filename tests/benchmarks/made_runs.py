"""Runs that nobody trained, for the tests of tables and figures."""

from benchmarks.report.results import Run


def made_run(
    method: str,
    accuracy: float = 0.5,
    *,
    kind: str = "",
    seed: int = 0,
    target: float | None = None,
    validation: float | None = None,
) -> Run:
    return Run(
        experiment="digits",
        method=method,
        kind=kind or method,
        settings={} if target is None else {"target_density": target},
        seed=seed,
        epochs=1,
        selected_epoch=1,
        test_loss=0.0,
        test_accuracy=accuracy,
        density=1.0 if target is None else target,
        densities={},
        nonzero=1,
        seconds_per_epoch=None,
        versions={},
        device="cpu",
        commit=None,
        validation_accuracy=validation,
    )
