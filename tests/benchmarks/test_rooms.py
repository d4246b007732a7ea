"""The benchmarks lie in rooms, and imports run from the lower floors to the higher ones."""

import ast
import pathlib

import benchmarks

PACKAGE = pathlib.Path(benchmarks.__file__).parent

FLOORS = [
    {"cli", "models"},
    {"data"},
    {"engine", "measure", "methods"},
    {"report"},
    {"experiments"},
    {"speed"},
    {"__main__", "__init__"},
]
"""Each room imports from itself and from the floors before its own."""


def imports_of(path: pathlib.Path) -> set[str]:
    """The rooms that a file imports from at its head."""
    rooms = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
            _, *parts = node.module.split(".") if node.module else [""]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
            rooms |= {name[1] for name in names if name[0] == "benchmarks" and len(name) > 1}
    return rooms


def test_imports_run_one_way():
    floors = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    files = {path: path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    rooms = {path: room.removesuffix(".py") for path, room in files.items()}
    assert set(rooms.values()) == set(floors)
    for path, room in rooms.items():
        wrong = {r for r in imports_of(path) if r != room and floors[r] >= floors[room]}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_no_circle_within_a_room():
    names = {
        path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    known = set(names.values())
    graph = {}
    for path, name in names.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        modules = [n.module or "" for n in body if isinstance(n, ast.ImportFrom)]
        graph[name] = {m.removeprefix("benchmarks.") for m in modules} & known

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' → '.join((*above, name))}"
        for other in graph[name]:
            visit(other, (*above, name))

    for name in graph:
        visit(name, ())
