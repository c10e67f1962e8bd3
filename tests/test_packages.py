"""The four packages: that they are ours."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "schema", "resolvers", "storage")


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
