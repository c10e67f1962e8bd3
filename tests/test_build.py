"""The build runs the tests on each Python that is promised and found, and says which it did not."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.doc_pages import ROOT

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"

PYTHON = """#!/bin/sh
exec {python} "$@"
"""

#: Stands for make: it notes what it is asked for, and fails for one version.
MAKE = """#!/bin/sh
echo "$*" >> {asked}
[ "$3" != VENV=.venv-{failing} ]
"""


def test_the_build_calls_the_tests_of_the_makefile_and_of_the_other_pythons() -> None:
    lines = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make test",
        "make test-programs",
        "make test-pythons",
        "make examples",
        "make fuzz",
        "make conformance",
    ]
    assert "set -euo pipefail" in lines


def test_the_pythons_are_those_that_are_promised() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    versions = [each.rpartition(" ")[2] for each in promised if re.fullmatch(r".* :: Python :: 3\.\d+", each)]
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval=show:;@echo $(PROMISED)", "show"],  # noqa: S607  # Make is the one in PATH, as for developers.
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split() == versions
    assert OWN in versions


@pytest.mark.parametrize("failing", [None, "9.8"])
def test_each_that_is_found_is_run_and_each_other_is_named(tmp_path: Path, failing: str | None) -> None:
    asked, ready = tmp_path / "asked", tmp_path / "ready"
    ready.touch()
    os.utime(ready, (2**32, 2**32))  # It is newer than what it is made of.
    for name, script in (
        ("python9.7", PYTHON.format(python=sys.executable)),
        ("python9.8", PYTHON.format(python=sys.executable)),
        ("make-of-tests", MAKE.format(asked=asked, failing=failing)),
    ):
        (tmp_path / name).write_text(script, "utf-8")
        (tmp_path / name).chmod(0o700)
    done = subprocess.run(
        [
            *("make", "test-pythons", f"PROMISED=9.7 9.8 9.9 {OWN}", f"MAKE={tmp_path / 'make-of-tests'}"),
            # The environment is there, and none is made in its place.
            *(f"DEV_READY={ready}", f"BIN={Path(sys.executable).parent}"),
        ],
        cwd=ROOT,
        # Not that of the make by which the tests were started, which would say where it is.
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    tests = "-m 'not one_python'"
    assert asked.read_text("utf-8").splitlines() == [
        f"--no-print-directory pytest VENV=.venv-{version} PYTHON=python{version} PYTEST_ARGS={tests} "
        for version in ("9.7", "9.8")
    ]
    assert done.stdout.splitlines() == [
        "Python 9.7 is python9.7.",
        "Python 9.8 is python9.8.",
        f"Python {OWN} is that of `make test`. Others that passed: {'9.7' if failing else '9.7 9.8'}.",
        "NOT FOUND, AND SO NOT TESTED: Python 9.9.",
        *([f"FAILED: Python {failing}."] if failing else ()),
    ]
    assert (done.returncode != 0) == (failing is not None)
