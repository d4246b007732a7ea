"""Settings and fixtures for the whole suite; the environment is set before JAX is imported."""
# ruff: noqa: E402

import importlib.metadata
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count=8"
# Most of the time goes into compiling small programs: without LLVM's optimizations half as much,
# and with XLA's older emitters of loops (which newer versions lack) a third of that. Flags from
# outside come last and win.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_DEVICES} {_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
# Programs that several tests compile are compiled once; the workers share the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="bregjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "bregjax",
    deadline=None,  # the first example compiles
    derandomize=True,
    max_examples=15,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,  # x64 need not be set up again
    ],
)
hypothesis.settings.register_profile(
    "thorough",
    parent=hypothesis.settings.get_profile("bregjax"),
    max_examples=200,
    derandomize=False,
)
hypothesis.settings.load_profile("bregjax")


@pytest.fixture(autouse=True)
def promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Strict for the library: no dtype is promoted silently.

    Doctests run as a user would run them. In the benchmarks Optax's schedules raise floats to
    integer powers, which strict promotion forbids.
    """
    benchmarks = request.path.parent.name == "benchmarks"
    with jax.numpy_dtype_promotion("standard" if benchmarks else "strict"):
        yield


_MAPPINGS = Path("/proc/self/maps")
_MANY = 30_000  # Linux allows a process 65,530


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Lets go of compiled programs before their memory mappings are too many for the system.

    Each holds several; a process that has no more of them dies of a segmentation fault.
    """
    yield
    if _MAPPINGS.is_file() and _MAPPINGS.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the authors' traces."""
    return Path(__file__).parent / "data" / "reference"
