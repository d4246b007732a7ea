"""Tests over many alike rows: one of each kind in every run, the others are slow tests."""

from collections.abc import Collection, Iterable

import pytest


def one_of_each_kind(names: Iterable[str], kinds: Collection[str]) -> pytest.MarkDecorator:
    """Parametrizes ``name``; those that are not in ``kinds`` are slow tests."""
    return pytest.mark.parametrize(
        "name", [n if n in kinds else pytest.param(n, marks=pytest.mark.slow) for n in names]
    )
