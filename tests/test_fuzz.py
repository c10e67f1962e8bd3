"""Fuzzing: what schemathesis draws from the GraphQL schema, sent to a server that really runs."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.servers import serving
from tests.steps import disagreements, make_meter, meter_of

#: How many operations of each of the 18 fields are drawn, with `--fuzz` and without.
MANY = {"sqlite": 170, "postgresql": 20}
FEW = {"sqlite": 8, "postgresql": 5}

CONFIG = f"""
hooks = "{Path(__file__).with_name("schemathesis_graphql_hooks.py")}"
"""


@pytest.mark.one_python
async def test_nothing_that_fits_the_schema_or_nearly_does_is_a_bug(
    own: Gateway, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    most = (MANY if request.config.getoption("--fuzz") else FEW)[own.database.dialect]
    meter_id = await make_meter(own, "seeded", workspaceId="seeded", totalCredits="1000", allowOverages=True)
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, "utf-8")
    async with serving(own.services.settings.database_url, tmp_path) as server:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", config),
            # What fits the schema may still break a rule that no schema states; how it is refused, the hooks look at.
            *("run", f"{server.url}/graphql", "--header", f"Authorization: Bearer {own.key}"),
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-examples", str(most)),
            *("--seed", "1", "--continue-on-failure", "--no-color"),
            env=os.environ | {"TOLLGATE_TEST_METER": f"{meter_id} seeded seeded"},
            cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    report = output.decode()
    print(report)  # noqa: T201  # pytest shows it where the test fails.
    assert process.returncode == 0, report
    cases = re.search(r"([0-9]+) generated", report)
    assert cases is not None, report
    # At least as many for each field that takes arguments; one without them has few operations to draw.
    assert int(cases[1]) >= 17 * most, report
    assert "Traceback" not in server.logged
    # Some of it found the meter, and was good.
    seeded = await meter_of(own, "seeded", workspace_id="seeded")
    kinds = {entry["kind"] for entry in seeded["ledger"]}
    assert kinds >= {"OPENING", "USAGE"}
    assert kinds >= {"REFILL", "GRANT", "HOLD"} or most < 100
    # Whatever was sent, the books are right.
    assert await disagreements(own.database) == []
