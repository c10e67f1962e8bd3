"""The four packages: that they are ours, and their form: no circle of imports, no long file, no full room.

And of the tests that none imports another: what several need is no test.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "schema", "resolvers", "storage")

MAX_LINES = 400
MAX_NAMES = 14

#: The modules that each module imports when it runs.
Imports = dict[str, set[str]]


def test_each_package_is_ours_and_lies_in_the_repository(tmp_path: Path) -> None:
    """PyPI has packages called `schema` and `storage`; a fresh interpreter must find ours, wherever it starts."""
    program = (
        "import importlib, json, sys;"
        "print(json.dumps({name: list(importlib.import_module(name).__path__) for name in sys.argv[1:]}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *PACKAGES], cwd=tmp_path, env={}, capture_output=True, check=True, text=True
    )
    assert json.loads(found.stdout) == {name: [str(ROOT / name)] for name in PACKAGES}
    for name in PACKAGES:
        assert Path(sys.modules[name].__file__ or "") == ROOT / name / "__init__.py"


def python_files(root: Path, rooms: tuple[str, ...]) -> Iterator[Path]:
    for room in rooms:
        for file in sorted((root / room).rglob("*.py")):
            if "node_modules" not in file.parts:
                yield file


@cache
def imports_of_files(root: Path, rooms: tuple[str, ...]) -> Imports:
    """Return which modules each module imports, also within functions; what is imported for types alone is left out."""
    files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in python_files(root, rooms)}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    imports: Imports = {}
    for name, file in modules.items():
        imports[name] = set()
        for module, imported in running_imports(ast.parse(file.read_text("utf-8"))):
            found = f"{module}.{imported}" if f"{module}.{imported}" in modules else module
            if found in modules and found != name:
                imports[name].add(found)
    return imports


def running_imports(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each module that is imported, and what is taken from it, except under `if TYPE_CHECKING:`."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.module or "", alias.name) for alias in node.names)
    is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in node.orelse if isinstance(node, ast.If) and is_for_types else ast.iter_child_nodes(node):
        yield from running_imports(child)


def imports_of_names(imports: Imports, folder: str) -> Imports:
    """Return which names of a folder import which others of it: a folder in it stands for all that is below."""
    names: Imports = {}
    for module, imported in imports.items():
        for other in {module, *imported}:
            if module.startswith(f"{folder}.") and other.startswith(f"{folder}."):
                one, another = (each[len(folder) + 1 :].split(".")[0] for each in (module, other))
                names.setdefault(one, set()).update({another} - {one})
    return names


def circle_in(imports: Imports) -> list[str]:
    """Return a circle of imports, the first module again at its end; nothing where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


def folders() -> list[Path]:
    """Return the rooms and the rooms within them; what is no package, such as a page's assets, is no room."""
    return [file.parent for file in python_files(ROOT, PACKAGES) if file.name == "__init__.py"]


@pytest.mark.slow
def test_no_file_imports_itself_through_others() -> None:
    assert not circle_in(imports_of_files(ROOT, PACKAGES))


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_imports_within_a_room_run_one_way(folder: Path) -> None:
    imports = imports_of_files(ROOT, PACKAGES)
    assert not circle_in(imports_of_names(imports, ".".join(folder.relative_to(ROOT).parts)))


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_room_is_read_at_a_glance(folder: Path) -> None:
    names = [each.name for each in folder.iterdir() if not each.name.startswith(("__", "."))]
    assert len(names) <= MAX_NAMES, sorted(names)


def test_no_file_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): file.read_bytes().count(b"\n") for file in python_files(ROOT, PACKAGES)}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


@pytest.mark.slow
def test_no_test_is_imported() -> None:
    imported = {
        f"{file.relative_to(ROOT)} imports {module}.{name}"
        for file in python_files(ROOT, ("tests", "benchmarks"))
        for module, name in running_imports(ast.parse(file.read_text("utf-8")))
        if f"{module}.{name}".startswith("tests.test_")
    }
    assert not imported, "What several tests need is a step in tests/steps.py, or has a module of its own."


@pytest.mark.parametrize(
    ("text", "is_circle"),
    [
        ("import room.two", True),
        ("from room import two", True),
        ("from room.two import name", True),
        ("def late():\n    from room import two", True),
        ("if TYPE_CHECKING:\n    from room import two", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from room import two", True),
        ("from other import two", False),
    ],
)
def test_a_circle_is_found_wherever_it_is_imported(tmp_path: Path, text: str, *, is_circle: bool) -> None:
    (tmp_path / "room").mkdir()
    for name, source in {"__init__": "", "one": text, "two": "import room.three", "three": "import room.one"}.items():
        (tmp_path / "room" / f"{name}.py").write_text(source)
    imports = imports_of_files(tmp_path, ("room",))
    circle = ["room.one", "room.two", "room.three"]
    assert set(circle_in(imports)) == (set(circle) if is_circle else set())
    assert bool(circle_in(imports_of_names(imports, "room"))) is is_circle
