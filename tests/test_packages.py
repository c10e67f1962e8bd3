"""The four packages: that they are ours, and what one of them imports of Strawberry."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "schema", "resolvers", "storage")


def imports_of(file: Path) -> Iterator[str]:
    """Return the full name of each module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


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


def test_of_the_resolvers_the_loaders_alone_import_strawberry_and_its_dataloader_alone() -> None:
    found = {
        (file.name, name)
        for file in (ROOT / "resolvers").rglob("*.py")
        for name in imports_of(file)
        if name.split(".")[0] == "strawberry"
    }
    assert found == {("loaders.py", "strawberry.dataloader")}
