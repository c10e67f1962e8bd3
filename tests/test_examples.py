"""The examples show what their pages say, and are locked; `make examples` builds and runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doc_pages import ROOT, blocks_of

FRONTEND = ROOT / "examples" / "frontend"
PAGES = [ROOT / "docs" / "frontend.md", ROOT / "docs" / "code-generation.md"]

#: The languages of the blocks that are taken from the examples; the others are run.
SOURCES = {"ts", "tsx", "toml", "python"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_that_a_page_shows_is_the_examples(page: Path) -> None:
    text = page.read_text("utf-8")
    shown = re.findall(r"`((?:[\w-]+/)*[\w-]+\.\w+)`:\n\n```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(shown) == len([block for block in blocks_of(page) if block.language in SOURCES])
    for name, _, code in shown:
        file = next(folder / name for folder in (ROOT, FRONTEND) if (folder / name).exists())
        assert code in file.read_text("utf-8"), f"{name} is shown as it is not"


def test_the_schema_is_checked_and_exported_as_the_page_says(tmp_path: Path) -> None:
    export, check = [block.text for block in blocks_of(PAGES[1]) if block.text.startswith("tollgate schema ")]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def shell(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-e", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert shell(export).returncode == 0
    schema = (ROOT / "schema" / "schema.graphql").read_text("utf-8")
    assert (tmp_path / "schema.graphql").read_text("utf-8") == schema
    assert shell(check).returncode == 0
    # An older schema with a field that is gone by now: the check ends with 1, and nothing is exported over it.
    older = schema.replace("  usedCredits: BigInt!\n", "  usedCredits: BigInt!\n\n  goneCredits: BigInt!\n")
    (tmp_path / "schema.graphql").write_text(older, "utf-8")
    refused = shell(check)
    assert refused.returncode == 1
    assert "goneCredits" in refused.stdout
    assert (tmp_path / "schema.graphql").read_text("utf-8") == older


@pytest.mark.parametrize("example", ["frontend", "receiver-typescript"])
def test_the_npm_packages_of_the_examples_are_locked_without_an_address(example: str) -> None:
    folder = ROOT / "examples" / example
    package = json.loads((folder / "package.json").read_text("utf-8"))
    versions = [*package["dependencies"].values(), *package["devDependencies"].values()]
    assert [version for version in versions if not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version)] == []
    packages = json.loads((folder / "package-lock.json").read_text("utf-8"))["packages"]
    assert [name for name, each in packages.items() if "resolved" in each] == []
    assert [name for name, each in packages.items() if name and "integrity" not in each] == []
    assert [name for name, each in packages.items() if each.get("hasInstallScript")] == []


@pytest.mark.parametrize("example", ["python-client", "llm-proxy", "receiver-python", "stripe"])
def test_the_python_packages_of_the_examples_are_locked_without_an_address(example: str) -> None:
    lock = (ROOT / "examples" / example / "requirements.lock").read_text("utf-8")
    assert "://" not in lock
    assert 0 < lock.count("==") <= lock.count("--hash=sha256:")


def test_every_example_is_in_the_list() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/*") if path.is_file()}
    listed = re.findall(r"^\| `([\w-]+)/` \|", (ROOT / "examples" / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(folders) == sorted(listed)
