"""Checks of arguments that the baselines share."""

import numbers
from typing import Any


def check_steps(name: str, value: object, *, at_least: int) -> None:
    """Raises `ValueError` unless ``value`` is a whole number of steps and not too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(
            f"{name} must be a whole number of steps, at least {at_least}, got {name}={value!r}."
        )


def require_params(params: Any) -> None:
    """Raises `ValueError` where `update` was called without the parameters."""
    if params is None:
        raise ValueError(
            "this transformation needs the parameters: call tx.update(updates, state, params);"
            " got params=None."
        )
