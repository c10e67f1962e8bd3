"""The Python client is generated from the schema, and the program that uses it does what it says.

It is run by `make examples`, which installs the generator into an environment of its own.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.doc_pages import blocks_of
from tests.examples.conftest import CLIENT, ROOT, Demo
from tests.servers import PATIENCE_SECONDS, Server

BIN = CLIENT / ".venv" / "bin"

GUIDE = ROOT / "docs" / "code-generation.md"

LARGEST = 9_223_372_036_854_775_807


#: What docs/code-generation.md runs: what makes the client, what uses it, and what that prints.
MAKING, USING = [block.text for block in blocks_of(GUIDE) if ".venv/bin/" in block.text]
(PRINTED,) = [block.text for block in blocks_of(GUIDE) if block.language == "text"]


@pytest.fixture(scope="module", autouse=True)
def generated() -> None:
    """Generate the client as its guide says, from the schema as it is."""
    # The Makefile has made the environment, from the same lock file.
    script = "\n".join(line for line in MAKING.splitlines() if "venv .venv" not in line and "pip install" not in line)
    assert script == "cd examples/python-client\n.venv/bin/ariadne-codegen"
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guides_commands_print_what_it_shows(demo: Demo) -> None:
    script = USING.replace("../../tollgate-demo.key", str(demo.server.folder / "tollgate-demo.key"))
    assert script != USING
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script],
        cwd=CLIENT,
        env=os.environ | {"GATEWAY_URL": demo.server.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (PRINTED, "", 0)


class Printed(NamedTuple):
    """What the program printed, and its exit code."""

    text: str
    code: int | None


class Program:
    """The example's program, on one meter of its own."""

    def __init__(self, demo: Demo, meter: str) -> None:
        self.demo = demo
        self.meter = meter

    async def run(self, *arguments: str, key: str | None = None) -> Printed:
        process = await asyncio.create_subprocess_exec(
            BIN / "python",
            "billing.py",
            *arguments,
            cwd=CLIENT,
            env={"GATEWAY_URL": self.demo.server.url, "GATEWAY_KEY": key or self.demo.key},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            out, err = await process.communicate()
        return Printed(out.decode() + err.decode().strip().rpartition("\n")[2], process.returncode)

    async def record(self, event: str, amount: int, *options: str) -> Printed:
        return await self.run("record", "python", self.meter, event, str(amount), *options)

    async def refill(self, amount: int, key: str) -> Printed:
        return await self.run("refill", "python", self.meter, str(amount), key)

    async def make_meter(self, **values: object) -> None:
        made = await self.demo.ask(
            "mutation ($input: CreateBillingMeterInput!) { createBillingMeter(input: $input) { __typename } }",
            input={"workspaceId": "python", "externalMeterId": self.meter} | values,
        )
        assert made["createBillingMeter"]["__typename"] == "CreateBillingMeterSuccess"

    async def balance(self) -> tuple[str, str]:
        data = await self.demo.ask(
            "query ($meter: String!) {"
            ' billingMeter(workspaceId: "python", externalMeterId: $meter) { totalCredits usedCredits } }',
            meter=self.meter,
        )
        return data["billingMeter"]["totalCredits"], data["billingMeter"]["usedCredits"]


@pytest.fixture
def program(demo: Demo, request: pytest.FixtureRequest) -> Program:
    """The program, and a meter that is named after the test."""
    return Program(demo, request.node.name)


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the types of the folder's program, beside the generated client."""
    mypy = Path(sys.executable).with_name("mypy")
    options = ("--config-file", CLIENT / "pyproject.toml", "--python-executable", BIN / "python")
    return subprocess.run(
        [mypy, *options, "billing.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_program_fits_the_generated_types() -> None:
    done = checked(CLIENT)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr


def test_a_field_that_a_refusal_has_not_does_not_fit_the_generated_types(tmp_path: Path) -> None:
    wrong = (CLIENT / "billing.py").read_text("utf-8").replace("answer.available}", "answer.refused}")
    (tmp_path / "billing.py").write_text(wrong, "utf-8")
    (tmp_path / "tollgate_client").symlink_to(CLIENT / "tollgate_client")
    done = checked(tmp_path)
    assert done.returncode == 1
    assert 'error: Item "RecordUsageRecordUsageInsufficientCredits" of ' in done.stdout
    assert 'has no attribute "refused"  [union-attr]\n' in done.stdout


async def test_a_customers_balances_are_printed(program: Program) -> None:
    meters = await program.demo.meters("acme-robotics")
    lines = [
        f"{name}: {int(meter['usedCredits']):,} of {int(meter['totalCredits']):,} used,"
        f" {int(meter['availableCredits']):,} available\n"
        for name, meter in meters.items()
    ]
    assert await program.run("customer", "acme-robotics") == ("Acme Robotics\n" + "".join(lines), 0)
    assert await program.run("customer", "nobody") == ("There is no customer nobody.\n", 1)


async def test_an_event_is_recorded_once_and_then_replayed(program: Program) -> None:
    await program.make_meter(totalCredits="100")
    assert await program.record("event-1", 30) == ("Recorded 30, refused 0.\n", 0)
    assert await program.record("event-1", 30) == ("Recorded 30, refused 0, as it was before.\n", 0)
    assert await program.balance() == ("100", "30")
    assert await program.record("event-2", 80, "--policy", "PARTIAL") == ("Recorded 70, refused 10.\n", 0)
    assert await program.balance() == ("100", "100")


async def test_every_refusal_of_usage_has_its_type(program: Program) -> None:
    await program.make_meter(totalCredits="100")
    assert await program.record("event-1", 30) == ("Recorded 30, refused 0.\n", 0)
    assert await program.record("event-1", 31) == ("IdempotencyConflict: the event was recorded with 30.\n", 1)
    assert await program.record("event-2", 71) == ("InsufficientCredits: 70 available.\n", 1)
    assert await program.record("", 1) == (
        "InvalidInput: input.eventId: eventId must have 1 to 255 characters; it has 0.\n",
        1,
    )
    assert await program.run("record", "python", "nowhere", "event-1", "1") == (
        "BillingMeterNotFound: There is no billing meter 'nowhere' in workspace 'python'.\n",
        1,
    )
    assert await program.balance() == ("100", "30")


async def test_a_spend_cap_that_is_passed_has_its_type(program: Program) -> None:
    await program.make_meter(totalCredits="100", allowOverages=True, spendCap="20")
    assert await program.record("event-1", 121) == ("SpendCapExceeded: 120 available.\n", 1)
    assert await program.balance() == ("100", "0")


async def test_usage_beyond_the_greatest_amount_has_its_type(program: Program) -> None:
    await program.make_meter(allowOverages=True)
    assert await program.record("event-1", 1) == ("Recorded 1, refused 0.\n", 0)
    assert await program.record("event-2", LARGEST) == (
        "AmountOutOfRange: The meter's used credits would pass 9223372036854775807, the greatest amount.\n",
        1,
    )
    assert await program.balance() == ("0", "1")


async def test_a_refill_is_counted_once_and_exact_to_the_last_digit(program: Program) -> None:
    await program.make_meter()
    line = "python: 0 of 9,223,372,036,854,775,807 used, 9,223,372,036,854,775,807 available"
    assert await program.refill(LARGEST, "invoice-1") == (line + "\n", 0)
    assert await program.refill(LARGEST, "invoice-1") == (line + " (as refilled before)\n", 0)
    assert await program.refill(0, "invoice-2") == ("InvalidInput: refill must be greater than 0.\n", 1)
    assert await program.refill(1, "invoice-3") == (
        "AmountOutOfRange: The meter's total credits would pass 9223372036854775807, the greatest amount.\n",
        1,
    )
    assert await program.record("event-1", LARGEST - 1) == (f"Recorded {LARGEST - 1}, refused 0.\n", 0)
    assert await program.balance() == (str(LARGEST), str(LARGEST - 1))


async def test_a_key_that_is_not_known_is_an_error_of_its_own(program: Program) -> None:
    await program.make_meter(totalCredits="100")
    refused = await program.run("record", "python", program.meter, "event-1", "1", key="sk_test_" + "x" * 43)
    assert refused.code == 1
    assert refused.text == "tollgate_client.exceptions.GraphQLClientHttpError: HTTP status code: 401"
    assert await program.balance() == ("100", "0")


async def test_a_write_is_sent_again_until_the_gateway_answers(program: Program, tmp_path: Path) -> None:
    await program.make_meter(totalCredits="100")
    # A gateway that is not up yet, on the same database, behind a proxy that says so and then goes away.
    late = Server(program.demo.server.settings["TOLLGATE_DATABASE_URL"], tmp_path)
    was_asked = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\nconnection: close\r\n\r\nGone")
        await writer.drain()
        writer.close()
        was_asked.set()

    async with await asyncio.start_server(refuse, "127.0.0.1", late.port):
        waiting = Program(Demo(late, program.demo.key, 0), program.meter)
        recording = asyncio.create_task(waiting.record("event-1", 30))
        await was_asked.wait()
    try:
        await late.start()
        assert await recording == ("Recorded 30, refused 0.\n", 0)
    finally:
        await late.stop()
    assert await program.balance() == ("100", "30")
