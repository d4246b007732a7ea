from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def standard_promotion() -> Iterator[None]:
    """Optax's schedules raise floats to integer powers, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
