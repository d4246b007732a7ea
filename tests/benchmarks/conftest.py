import pytest


@pytest.fixture(autouse=True)
def strict_promotion() -> None:
    """Off: Optax's schedules raise floats to integer powers, which strict promotion forbids."""
