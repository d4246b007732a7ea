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
    assert public == set(bregjax.__all__)


@pytest.mark.parametrize("name", bregjax.__all__)
def test_public_names_are_documented(name):
    thing = getattr(bregjax, name)
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


@pytest.mark.parametrize(
    ("pattern", "forbidden"),
    [
        ("_regularizers/*.py", ("_prox", "_mirror", "_stage", "_optimizers", "_initializers")),
        ("_prox.py", ("_mirror", "_optimizers")),
        ("_mirror.py", ("_optimizers",)),
        ("_stage.py", ("_regularizers", "_prox", "_mirror", "_optimizers")),
        ("_selection.py", ("_regularizers", "_prox", "_mirror", "_optimizers")),
        ("_theory.py", ("_prox", "_mirror", "_optimizers")),
        ("_measures.py", ("_prox", "_mirror", "_optimizers")),
    ],
)
def test_imports_run_one_way(pattern, forbidden):
    files = sorted(PACKAGE.glob(pattern))
    assert files
    for path in files:
        wrong = {name for name in imports_of(path) if name.startswith(forbidden)}
        assert not wrong, f"{path.name} imports {wrong}"


def test_no_module_imports_flax_at_its_head():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.startswith("flax") for module in modules), path.name
