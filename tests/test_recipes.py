"""What is forgotten of a recipe in `docs/CONTRIBUTING.md` is named by a test or a check: each is tried in a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

#: What a copy has of the project.
COPIED = ("gateway", "schema", "resolvers", "storage", "tests", "docs", "pyproject.toml", "README.md")

FIELD = "    label: str | None = strawberry.field({}description='The label.')\n"


class Forgotten(NamedTuple):
    """What is done without the rest of its recipe, what is run then, and what that must name."""

    file: str
    before: str
    added: str
    run: list[str]
    named: str


#: `added` comes before the line that is named.
FORGOTTEN = {
    "a column without a migration": Forgotten(
        "storage/meters/billing_meters.py",
        '    Column("timezone", Text, nullable=False),\n',
        '    Column("label", Text),\n',
        ["pytest", "tests/test_database.py", "-k", "exactly_the_tables and sqlite"],
        "'label'",
    ),
    "a field of a type without a column": Forgotten(
        "schema/meters/billing_meters.py",
        "    customer_id: strawberry.Private[str | None]\n",
        FIELD.format("metadata=text(5), "),
        ["pytest", "tests/test_schema.py", "-k", "attribute_of_the_record"],
        "'label'",
    ),
    "a field of a type that does not say how long it is": Forgotten(
        "schema/meters/billing_meters.py",
        "    customer_id: strawberry.Private[str | None]\n",
        FIELD.format(""),
        ["pytest", "tests/test_schema.py"],
        "BillingMeter.label does not say how long its values are.",
    ),
    "a field of an input that goes nowhere": Forgotten(
        "schema/meters/billing_meter_mutations.py",
        "    idempotency_key: str | None = strawberry.field(\n        default=strawberry.UNSET,\n"
        "        description=\"The caller's name of this request,",
        FIELD.format("default=strawberry.UNSET, "),
        ["pytest", "tests/test_idempotency.py"],
        "'label'",
    ),
    "a setting that is not documented": Forgotten(
        "gateway/settings.py",
        "    database_url: str =",
        "    label: str = 'x'\n",
        ["pytest", "tests/test_docs.py", "-k", "every_setting_is_documented"],
        "TOLLGATE_LABEL",
    ),
    "a refusal without a type": Forgotten(
        "resolvers/errors.py",
        "class UsageEventNotFound(Refusal):\n",
        "class LabelTaken(Refusal):\n    code = 'LABEL_TAKEN'\n\n\n",
        ["pytest", "tests/test_schema.py", "-k", "every_refusal_of_the_domain"],
        "LabelTaken",
    ),
}


@pytest.mark.one_python
@pytest.mark.parametrize("case", FORGOTTEN.values(), ids=FORGOTTEN)
def test_what_is_forgotten_is_named(tmp_path: Path, case: Forgotten) -> None:
    # What is compiled of files that stay as they are need not be compiled again.
    ignored = shutil.ignore_patterns("node_modules", "assets", "source", ".*")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    changed = tmp_path / case.file
    text = changed.read_text("utf-8")
    assert text.count(case.before) == 1
    changed.write_text(text.replace(case.before, case.added + case.before), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", *case.run, "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode != 0, done.stdout
    assert case.named in done.stdout + done.stderr
