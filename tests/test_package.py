import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import bregjax

PACKAGE = pathlib.Path(bregjax.__file__).parent


def test_import_loads_nothing_beyond_jax_and_optax():
    script = """
import sys, jax, optax
before = {name.partition(".")[0] for name in sys.modules}
import bregjax
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - sys.stdlib_module_names))
print(*sorted(after & {"flax", "tensorflow_datasets", "tensorflow", "matplotlib", "orbax"}))
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert result.stdout.splitlines() == ["bregjax", ""]


def test_all_is_sorted_and_complete():
    assert bregjax.__all__ == sorted(set(bregjax.__all__))
    public = {
        name
        for name, value in vars(bregjax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    lazy = {"baselines", "factorize", "shrink", "shrink_optimizer", "shrunk_share"}
    assert public - {"Any", "TYPE_CHECKING"} | lazy == set(bregjax.__all__)


PUBLIC = [(bregjax, name) for name in bregjax.__all__ if name != "baselines"]
PUBLIC += [(bregjax.baselines, name) for name in bregjax.baselines.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_public_names_are_documented(module, name):
    thing = getattr(module, name)
    doc = inspect.getdoc(thing)
    assert doc
    assert thing.__module__.startswith("bregjax.")
    if not inspect.isfunction(thing):
        return
    assert "Example:" in doc
    assert ">>> " in doc
    parameters = inspect.signature(thing).parameters
    assert not parameters or "Args:" in doc
    for parameter in parameters:
        assert f"{parameter}:" in doc, f"{name} does not describe {parameter}"
    assert "Returns:" in doc


def test_version_is_semantic():
    numbers = bregjax.__version__.split(".")
    assert len(numbers) == 3
    assert all(number.isdigit() for number in numbers)


def test_is_marked_as_typed():
    assert (PACKAGE / "py.typed").exists()


def imports_of(path: pathlib.Path) -> set[str]:
    """The modules of the package that a file imports at its head, without its own name."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("bregjax.") for name in modules if name.startswith("bregjax.")}


LAYERS = [
    {"_sharding", "_validation"},
    {"_numerics", "_leaves", "_states", "_tables", "_when_due", "_top_k"},
    {"_live_weights", "_regularizers", "_scope", "_shrinking"},
    {"_prox", "_measures", "_initializers", "_theory", "_export", "_flax"},
    {"_mirror", "_report", "_plateau", "baselines"},
    {"_optimizers", "_support", "_evidence"},
    {"_steering", "_strength"},
    {"_landing", "_to_density"},
    {"_diagnosis", "_compaction"},
    {"_flax_shrinking"},
    {"__init__"},
]
"""Rooms of the package; each imports from those above it, and a folder from itself."""


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_imports_run_one_way():
    files = {p: room_of(".".join(p.relative_to(PACKAGE).parts)) for p in PACKAGE.rglob("*.py")}
    floors = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
    assert set(files.values()) == set(floors)
    for path, room in files.items():
        above = {to for to in map(room_of, imports_of(path)) if to != room}
        wrong = {to for to in above if floors[to] >= floors[room]}
        assert not wrong, f"{path.name} imports {wrong}"


REGULARIZER_LAYERS = [
    {"_base", "_matrices"},
    {"_batched", "_elementwise", "_norms", "_spectral"},
    {"_group", "_nuclear", "_soft_bernoulli", "__init__"},
]


def test_imports_between_regularizers_run_one_way():
    floors = {name: floor for floor, names in enumerate(REGULARIZER_LAYERS) for name in names}
    files = sorted((PACKAGE / "_regularizers").glob("*.py"))
    assert {path.stem for path in files} == set(floors)
    for path in files:
        others = {n.rpartition(".")[2] for n in imports_of(path) if n.startswith("_regularizers.")}
        wrong = {name for name in others if floors[name] >= floors[path.stem]}
        assert not wrong, f"{path.name} imports {wrong}"


def test_flax_helpers_are_loaded_when_they_are_asked_for():
    script = """
import sys, bregjax
print("flax" in sys.modules, "bregjax._flax" in sys.modules)
print(bregjax.factorize.__name__, "flax" in sys.modules, hasattr(bregjax, "unknown"))
"""
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert result.stdout.splitlines() == ["False False", "factorize True False"]


def test_modules_for_flax_alone_import_it_at_their_heads():
    for path in set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("_flax*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.startswith("flax") for module in modules), path.name
