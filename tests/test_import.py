"""Importing usage from JSON Lines: what it records, what it refuses, and how it is resumed."""

import asyncio
import base64
import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import re
import signal
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from gateway.cli.usage_import.lines import MAX_LINE_BYTES, NotLines, open_lines
from gateway.cli.usage_import.recording import GROUP, Counts, Import
from gateway.cli.usage_import.rejects import Rejects, rejects_at
from gateway.services import Services
from gateway.settings import Settings
from resolvers.actor import Scope
from resolvers.api_keys import create_api_key, revoke_api_key
from resolvers.errors import InvalidInput
from resolvers.values import check_org
from storage import migrations
from storage.meters import billing_meters
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment
from tests import commands
from tests.conftest import NOW, Gateway
from tests.credit_walks import Walk
from tests.steps import books_of, make_meter, settle, unchanged

#: The command, as it is installed beside the interpreter.
TOLLGATE = Path(sys.executable).with_name("tollgate")

#: One hour of real requests to a language model; see the README beside it.
TRACE = Path(__file__).with_name("data") / "azure-llm-conv.jsonl.gz"

NOTHING = {"read": 0, "accepted": 0, "partial": 0, "replayed": 0, "conflicts": 0, "refused": 0, "invalid": 0}


@pytest.fixture(scope="module")
def trace() -> list[bytes]:
    """The lines of the trace."""
    return gzip.decompress(TRACE.read_bytes()).splitlines()


class Imported(NamedTuple):
    """What an import came to: its counts, the lines of the rejects file, and why it stopped early, if it did."""

    counts: dict[str, int]
    rejects: list[dict[str, Any]]
    failure: str | None


async def import_(
    gateway: Gateway,
    file: Path,
    *,
    policy: OverLimitPolicy = OverLimitPolicy.REJECT,
    backfill: bool = False,
    create_meters: bool = False,
    org_id: str | None = None,
    environment: Environment = Environment.SANDBOX,
    rejects: Path | None = None,
) -> Imported:
    """Import a file into the gateway's database, for its organization unless another one is named."""
    path = rejects or file.with_name(f"{file.name}.rejects.jsonl")
    # Those of the run before were the test's own.
    path.unlink(missing_ok=True)
    with rejects_at(path, source=str(file)) as opened, open_lines(str(file)) as lines:
        usage_import = Import(
            org_id=org_id or gateway.org_id,
            environment=environment,
            policy=policy,
            backfill=backfill,
            create_meters=create_meters,
            rejects=opened,
        )
        counts = await usage_import.run(gateway.services, lines, Console(file=io.StringIO()))
    written = path.read_bytes().splitlines() if path.exists() else []
    assert sum(counts.as_json().values()) == 2 * counts.read
    assert counts.rejected == len(written)
    return Imported(counts.as_json(), [json.loads(line) for line in written], usage_import.failure)


class Ran(NamedTuple):
    """What a command came to."""

    status: int
    stdout: str
    stderr: str

    def counts(self) -> dict[str, int]:
        """Return the JSON object that is all that was printed."""
        assert self.stdout.endswith("}\n")
        assert self.stdout.count("\n") == 1
        counts: dict[str, int] = json.loads(self.stdout)
        assert list(counts) == list(NOTHING)
        assert sum(counts.values()) == 2 * counts["read"]
        return counts


def environment_of(gateway: Gateway) -> dict[str, str]:
    """Return the environment of a command that works on the gateway's database."""
    return commands.environment(TOLLGATE_DATABASE_URL=gateway.services.settings.database_url)


async def tollgate_import(
    gateway: Gateway, folder: Path, file: str | Path, *options: str, stdin: bytes = b"", org_id: str | None = None
) -> Ran:
    """Run `tollgate import` in the folder, as a process of its own, for the gateway's organization's sandbox."""
    done = await asyncio.to_thread(
        commands.run,
        *("import", str(file), "--org", org_id or gateway.org_id, "--environment", "sandbox", *options),
        folder=folder,
        environment=environment_of(gateway),
        stdin=stdin,
    )
    return Ran(*done)


def names_in(folder: Path) -> list[str]:
    """Return the names of all that is in the folder."""
    return sorted(path.name for path in folder.iterdir())


def rejects_files(folder: Path) -> list[str]:
    """Return the names of the rejects files in the folder that are named after what was imported."""
    return sorted(path.name for path in folder.glob("*.rejects.jsonl"))


def line(event_id: str = "e", amount: Any = "1", **fields: Any) -> bytes:
    """Return the line of an event on the meter `m`, unless the fields say otherwise; a field of `...` is left out."""
    event = {"workspaceId": "w", "externalMeterId": "m", "eventId": event_id, "amount": amount} | fields
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


def file_of(folder: Path, lines: Sequence[bytes], name: str = "usage.jsonl") -> Path:
    """Write a file of these lines."""
    file = folder / name
    text = b"".join(each + b"\n" for each in lines)
    file.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
    return file


# The real input.


async def test_the_trace_is_imported_whole_and_a_second_time_changes_nothing(gateway: Gateway, tmp_path: Path) -> None:
    ran = await tollgate_import(gateway, tmp_path, TRACE, "--create-meters", "--backfill", "--json")
    assert ran.status == 0
    assert ran.counts() == NOTHING | {"read": 38_732, "accepted": 38_732}
    # No line was rejected, so no file lists any.
    assert rejects_files(tmp_path) == []
    books = await books_of(gateway, "conv", workspace_id="azure")
    assert (books.meter.total_credits, books.meter.used_credits) == (0, 26_450_535)
    assert (books.meter.allow_overages, books.meter.spend_cap, books.meter.timezone) == (True, None, "UTC")
    assert len(books.entries) == 1 + 38_732
    assert books.days == {("2023-11-16", "contextTokens"): 22_361_870, ("2023-11-16", "generatedTokens"): 4_088_665}
    assert {entry.recorded_by for entry in books.entries} == {"tollgate-import"}

    counts, rejects, failure = await import_(gateway, TRACE, backfill=True, rejects=tmp_path / "rejects.jsonl")
    assert counts == NOTHING | {"read": 38_732, "replayed": 38_732}
    assert (rejects, failure) == ([], None)
    assert await books_of(gateway, "conv", workspace_id="azure") == books


@pytest.mark.slow
async def test_the_trace_is_imported_as_far_as_the_credits_go(
    gateway: Gateway, tmp_path: Path, trace: list[bytes]
) -> None:
    await make_meter(gateway, workspaceId="azure", externalMeterId="conv", totalCredits="1500000")
    lines = trace[:6_000]
    file = file_of(tmp_path, lines)
    counts, rejects, failure = await import_(gateway, file, backfill=True, rejects=tmp_path / "rejects.jsonl")
    assert counts == NOTHING | {"read": 6_000, "accepted": 2_346, "refused": 3_654}
    assert failure is None
    books = await books_of(gateway, "conv", workspace_id="azure")
    assert (books.meter.total_credits, books.meter.used_credits) == (1_500_000, 1_499_999)
    assert len(books.entries) == 1 + 2_346
    assert books.days == {("2023-11-16", "contextTokens"): 1_213_464, ("2023-11-16", "generatedTokens"): 286_535}

    # One at a time in file order: the refused lines are those that did not fit when it was their turn.
    used = 0
    expected = []
    for number, text in enumerate(lines, start=1):
        amount = int(json.loads(text)["amount"])
        if used + amount <= 1_500_000:
            used += amount
        else:
            available = 1_500_000 - used
            message = f"{amount} credits are asked for and {available} are available."
            expected.append(
                {"line": number, "code": "INSUFFICIENT_CREDITS", "message": message, "input": text.decode()}
            )
    assert rejects == expected


async def test_an_import_that_was_killed_is_completed_by_running_it_again(
    gateway: Gateway, tmp_path: Path, trace: list[bytes]
) -> None:
    lines = trace[:5_000]
    events = [json.loads(text) for text in lines]
    process = await asyncio.create_subprocess_exec(
        TOLLGATE,
        "import",
        "-",
        *("--org", gateway.org_id, "--environment", "sandbox", "--create-meters", "--backfill"),
        env=environment_of(gateway),
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def feed() -> None:
        # Its input is never ended, so it cannot have finished when it is killed.
        assert process.stdin is not None
        with suppress(ConnectionError):
            for text in lines:
                process.stdin.write(text + b"\n")
                await process.stdin.drain()

    feeding = asyncio.create_task(feed())
    name = ("azure", "conv")
    bucket = gateway.database.buckets.of_names((gateway.org_id, Environment.SANDBOX, *name))
    used = 0
    try:
        while not used:
            # A read of SQLite is over without a pause, in which the lines are fed.
            await asyncio.sleep(0.01)
            assert process.returncode is None
            async with gateway.database.read(bucket) as reader:
                found = await billing_meters.by_names(
                    reader, [name], org_id=gateway.org_id, environment=Environment.SANDBOX
                )
            used = found[name].used_credits if name in found else 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)

    # What is recorded is the beginning of the file, in whole groups.
    await settle(gateway, "conv", workspace_id="azure")
    books = await books_of(gateway, "conv", workspace_id="azure")
    recorded = len(books.entries) - 1
    assert recorded in range(1_000, 5_001, 1_000)
    assert [entry.key for entry in books.entries[1:]] == [event["eventId"] for event in events[:recorded]]

    file = file_of(tmp_path, lines)
    again = await tollgate_import(gateway, tmp_path, file, "--create-meters", "--backfill", "--json")
    assert again.status == 0
    assert again.counts() == NOTHING | {"read": 5_000, "replayed": recorded, "accepted": 5_000 - recorded}
    books = await books_of(gateway, "conv", workspace_id="azure")
    assert books.meter.used_credits == sum(int(event["amount"]) for event in events)
    assert [(entry.key, entry.amount) for entry in books.entries[1:]] == [
        (event["eventId"], int(event["amount"])) for event in events
    ]


@pytest.mark.slow
async def test_the_api_records_the_same_as_an_import(gateway: Gateway, tmp_path: Path, trace: list[bytes]) -> None:
    thousand = trace[:1_000]
    elsewhere = f"{gateway.org_id}-imported"
    importer = await gateway.caller(org_id=elsewhere)
    for caller in (gateway, importer):
        # The credits run out on the way: their sum is 600,220.
        await make_meter(caller, "conv", workspaceId="azure", totalCredits="400000")
    recorder = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
    answers = [(await recorder.mutate("recordUsage", "", **json.loads(text)))["__typename"] for text in thousand]
    accepted = answers.count("RecordUsageSuccess")
    refused = answers.count("InsufficientCredits")
    assert accepted + refused == 1_000
    assert refused > 0

    file = file_of(tmp_path, thousand)
    counts, rejects, _ = await import_(gateway, file, backfill=True, org_id=elsewhere)
    assert counts == NOTHING | {"read": 1_000, "accepted": accepted, "refused": refused}
    assert [each["line"] for each in rejects] == [
        number for number, answer in enumerate(answers, start=1) if answer == "InsufficientCredits"
    ]

    sent = await books_of(gateway, "conv", workspace_id="azure")
    imported = await books_of(gateway, "conv", workspace_id="azure", org_id=elsewhere)
    assert imported.days == sent.days
    assert imported.meter._replace(id=sent.meter.id, org_id=gateway.org_id) == sent.meter
    assert [
        entry._replace(meter_id=sent.meter.id, recorded_by=other.recorded_by)
        # The opening names its organization.
        for entry, other in zip(imported.entries[1:], sent.entries[1:], strict=True)
    ] == sent.entries[1:]
    # What was sent is known to an import as well.
    counts, _, _ = await import_(gateway, file, backfill=True)
    assert counts == NOTHING | {"read": 1_000, "replayed": accepted, "refused": refused}
    assert await books_of(gateway, "conv", workspace_id="azure") == sent


# Lines that are no events, or not accepted.

INVALID = "INVALID_INPUT"
IS_AMOUNT = (
    "amount is refused: An amount is a whole number from 0 to 9223372036854775807, as an integer or a string of ASCII"
    " digits."
)
IS_TIME = (
    "occurredAt is refused: A time is written as in RFC 3339, with an offset and at most 30 decimals:"
    " 2026-01-31T09:30:00.25Z."
)
IS_POLICY = "policy is refused: It must be one of REJECT, PARTIAL, FORCE."
IS_JSON = "line must be JSON in UTF-8: "
TOO_LONG = "line must have at most 262144 bytes; it is longer, and is not repeated here."

IS_ROUNDED = (
    "amount is refused: An amount greater than 9007199254740991 must be a string of digits, as many clients round a"
    " JSON number so great."
)

#: Lines with the code and the beginning of the reason that they are rejected for.
REJECTED: list[tuple[bytes, str, str]] = [
    # Not JSON, or not in UTF-8.
    (b"not json", INVALID, IS_JSON),
    (line()[:-1], INVALID, IS_JSON),
    (line() + line(), INVALID, IS_JSON),
    (line().replace(b'"e"', b"'e'"), INVALID, IS_JSON),
    (line().replace(b'"1"', b"NaN"), INVALID, IS_JSON),
    (line().replace(b'"e"', b'"\xff"'), INVALID, IS_JSON),
    (line().replace(b'"e"', b'"\xed\xa0\x80"'), INVALID, IS_JSON),
    (line().replace(b'"e"', b'"\\ud800"'), INVALID, IS_JSON),
    (line().replace(b'"e"', b'"\x00"'), INVALID, IS_JSON),
    (b"\x00", INVALID, IS_JSON),
    (b"\xef\xbb\xbf\xff\xfe", INVALID, IS_JSON),
    # Not an object.
    (b"[]", INVALID, "line must be a JSON object."),
    (b"[" + line() + b"]", INVALID, "line must be a JSON object."),
    (b'"text"', INVALID, "line must be a JSON object."),
    (b"12", INVALID, "line must be a JSON object."),
    (b"null", INVALID, "line must be a JSON object."),
    # Fields that are missing or that there are not.
    (b"{}", INVALID, "workspaceId is required."),
    (line(workspaceId=...), INVALID, "workspaceId is required."),
    (line(externalMeterId=...), INVALID, "externalMeterId is required."),
    (line(eventId=...), INVALID, "eventId is required."),
    (line(amount=...), INVALID, "amount is required."),
    (line(amount=None), INVALID, "amount is required."),
    (line(colour="red"), INVALID, "colour is not a field of RecordUsageInput."),
    (line(usage_name="a"), INVALID, "usage_name is not a field of RecordUsageInput."),
    (line(event_id="e", eventid="e"), INVALID, "eventid is not a field of RecordUsageInput."),
    # Amounts.
    (line(amount=-1), INVALID, IS_AMOUNT),
    (line(amount="-1"), INVALID, IS_AMOUNT),
    (line(amount="+1"), INVALID, IS_AMOUNT),
    (line(amount=1.0), INVALID, IS_AMOUNT),
    (line(amount="1.0"), INVALID, IS_AMOUNT),
    (line(amount="1e3"), INVALID, IS_AMOUNT),
    (line(amount=""), INVALID, IS_AMOUNT),
    (line(amount=" 1"), INVALID, IS_AMOUNT),
    (line(amount="1\n"), INVALID, IS_AMOUNT),
    (line(amount="٣"), INVALID, IS_AMOUNT),
    (line(amount=True), INVALID, IS_AMOUNT),
    (line(amount=[1]), INVALID, IS_AMOUNT),
    (line(amount=2**53), INVALID, IS_ROUNDED),
    (line(amount=2**63 - 1), INVALID, IS_ROUNDED),
    (line(amount=2**63), INVALID, IS_AMOUNT),
    (line(amount=str(2**63)), INVALID, IS_AMOUNT),
    (line(amount=2**64), INVALID, IS_AMOUNT),
    # Times.
    (line(occurredAt="2026-03-16"), INVALID, IS_TIME),
    (line(occurredAt="2026-03-16T10:00:00"), INVALID, IS_TIME),
    (line(occurredAt="2026-03-16 10:00:00Z"), INVALID, IS_TIME),
    (line(occurredAt="2026-03-16T10:00Z"), INVALID, IS_TIME),
    (line(occurredAt=f"2026-03-16T10:00:00.{'1' * 31}Z"), INVALID, IS_TIME),
    (line(occurredAt="2026-W12-1T10:00:00Z"), INVALID, IS_TIME),
    (line(occurredAt="2026-02-29T10:00:00Z"), INVALID, IS_TIME),
    (line(occurredAt="2026-03-16T23:59:60Z"), INVALID, IS_TIME),
    (line(occurredAt=1773655200), INVALID, IS_TIME),
    (line(occurredAt="2026-03-16T12:05:00.000001Z"), INVALID, "occurredAt must be at most 5 minutes ahead."),
    (line(occurredAt="2026-02-09T11:59:59.999999Z"), INVALID, "occurredAt must be at most 35 days ago;"),
    (line(occurredAt="1969-12-31T23:59:59Z"), INVALID, "occurredAt must not be before 1970."),
    # Policies.
    (line(policy="reject"), INVALID, IS_POLICY),
    (line(policy="SOMETIMES"), INVALID, IS_POLICY),
    (line(policy=""), INVALID, IS_POLICY),
    (line(policy=1), INVALID, "policy is refused: It must be a string."),
    # Texts and metadata.
    (line(workspaceId=1), INVALID, "workspaceId is refused: It must be a string."),
    (line(eventId=["e"]), INVALID, "eventId is refused: It must be a string."),
    (line(workspaceId=""), INVALID, "workspaceId must have 1 to 256 characters; it has 0."),
    (line(externalMeterId="m" * 257), INVALID, "externalMeterId must have 1 to 256 characters; it has 257."),
    (line(eventId=""), INVALID, "eventId must have 1 to 255 characters; it has 0."),
    (line(eventId="e" * 256), INVALID, "eventId must have 1 to 255 characters; it has 256."),
    (line(eventId="e\0"), INVALID, "eventId must not contain NUL or lone surrogates."),
    (line(usageName="u" * 129), INVALID, "usageName must have 1 to 128 characters; it has 129."),
    (line(usageName="\0"), INVALID, "usageName must not contain NUL or lone surrogates."),
    (line(metadata=[]), INVALID, "metadata must be a JSON object."),
    (line(metadata="a"), INVALID, "metadata must be a JSON object."),
    (line(metadata={"a": "\0"}), INVALID, "metadata must not contain NUL or lone surrogates."),
    (line(metadata={"a": "x" * 16_384}), INVALID, "metadata must take at most 16384 bytes as compact JSON;"),
    # Lines that are too long, up to where they are read.
    (line().ljust(MAX_LINE_BYTES + 1), INVALID, TOO_LONG),
    (b"x" * (3 * MAX_LINE_BYTES), INVALID, TOO_LONG),
    (b"x" * (2 * MAX_LINE_BYTES + 2), INVALID, TOO_LONG),
    # Events that are not accepted.
    (line("first", "2"), "IDEMPOTENCY_CONFLICT", "'first' was used before with other values."),
    (line("first", usageName="a"), "IDEMPOTENCY_CONFLICT", "'first' was used before with other values."),
    (line("much", "1001"), "INSUFFICIENT_CREDITS", "1001 credits are asked for and "),
    (line(externalMeterId="n"), "BILLING_METER_NOT_FOUND", "There is no billing meter 'n' in workspace 'w'."),
    (line("wide", "9223372036854775807", policy="FORCE"), "AMOUNT_OUT_OF_RANGE", "The meter's used credits would pass"),
]

BLANK = [b"", b" ", b"\t \r", b"  " * 100]


def kept(text: bytes) -> dict[str, Any]:
    """Return what the rejects hold of a line."""
    if len(text) > MAX_LINE_BYTES:
        return {"input": None}
    try:
        return {"input": text.decode()}
    except UnicodeDecodeError:
        return {"input": None, "inputBase64": base64.b64encode(text).decode()}


async def test_a_bad_line_never_stops_the_rest(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="1000")
    lines: list[bytes] = [line("first")]
    expected: list[dict[str, Any]] = []
    for number, (text, code, message) in enumerate(REJECTED):
        lines += [BLANK[number % 4], text]
        expected.append({"line": len(lines), "code": code, "message": message} | kept(text))
        # Between them all, events are recorded as ever; some lines end as on Windows.
        lines.append(line(f"good {number}", "2", usageName="good") + b"\r" * (number % 2))
    lines.append(line("check", 0))
    lines.append(line("first"))
    file = tmp_path / "usage.jsonl"
    # The last line has no end.
    file.write_bytes(b"\n".join(lines))

    counts, rejects, failure = await import_(gateway, file)
    assert failure is None
    good = len(REJECTED)
    assert counts == {
        "read": 1 + 2 * good + 2,
        "accepted": 1 + good + 1,
        "partial": 0,
        "replayed": 1,
        "conflicts": 2,
        "refused": 3,
        "invalid": good - 5,
    }
    # The reasons are known to begin so; a parser's own words follow.
    for reject, wanted in zip(rejects, expected, strict=True):
        assert reject["message"].startswith(wanted["message"])
        assert reject | {"message": wanted["message"]} == wanted
    books = await books_of(gateway)
    assert books.meter.used_credits == 1 + 2 * good
    assert [entry.key for entry in books.entries[1:]] == ["first"] + [f"good {number}" for number in range(good)]
    assert books.days == {("2026-03-16", "default"): 1, ("2026-03-16", "good"): 2 * good}

    # Repaired, a rejected line can be imported alone; nothing else changes.
    again = await import_(gateway, file)
    assert again.counts == counts | {"accepted": 1, "replayed": 2 + good}
    assert [each["line"] for each in again.rejects] == [each["line"] for each in rejects]
    assert await books_of(gateway) == books


async def test_rejects_are_reported_in_the_order_of_the_file(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    lines = [line("a", "11"), b"not json", line("b"), line("b", "2"), b"[]", line("c", "10")]
    rejects = (await import_(gateway, file_of(tmp_path, lines))).rejects
    assert [(each["line"], each["code"]) for each in rejects] == [
        (1, "INSUFFICIENT_CREDITS"),
        (2, "INVALID_INPUT"),
        (4, "IDEMPOTENCY_CONFLICT"),
        (5, "INVALID_INPUT"),
        (6, "INSUFFICIENT_CREDITS"),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
async def test_the_longest_line_is_read(gateway: Gateway, tmp_path: Path, end: bytes) -> None:
    await make_meter(gateway, totalCredits="10")
    file = tmp_path / "usage.jsonl"
    file.write_bytes(line("first") + b"\n" + line("long").ljust(MAX_LINE_BYTES) + end)
    counts, rejects, _ = await import_(gateway, file)
    assert counts == NOTHING | {"read": 2, "accepted": 2}
    assert rejects == []
    assert (await books_of(gateway)).meter.used_credits == 2


async def test_a_line_that_is_too_long_is_rejected_also_when_it_begins_blank(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    lines = [line("first"), b" " * (MAX_LINE_BYTES + 1) + line("long"), line("last")]
    counts, rejects, _ = await import_(gateway, file_of(tmp_path, lines))
    assert counts == NOTHING | {"read": 3, "accepted": 2, "invalid": 1}
    assert [(each["line"], each["message"]) for each in rejects] == [(2, TOO_LONG)]
    assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "first", "last"]


async def test_a_file_of_nothing_is_imported(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        assert await import_(gateway, file_of(tmp_path, [])) == (NOTHING, [], None)
        assert await import_(gateway, file_of(tmp_path, BLANK)) == (NOTHING, [], None)
        assert await import_(gateway, file_of(tmp_path, [], "usage.jsonl.gz")) == (NOTHING, [], None)


# Options.


async def test_the_policy_of_the_import_is_that_of_the_lines_that_name_none(gateway: Gateway, tmp_path: Path) -> None:
    lines = [
        line("own policy", "11", policy="REJECT"),
        line("covered", "4"),
        line("uncovered", "9"),
        line("beyond", "2"),
        line("forced", "3", policy="FORCE"),
    ]
    file = file_of(tmp_path, lines)
    for name in OverLimitPolicy:
        await make_meter(gateway, workspaceId=name, totalCredits="10")
    found = {}
    for policy in OverLimitPolicy:
        named = file_of(tmp_path, [text.replace(b'"w"', f'"{policy}"'.encode()) for text in lines], "named.jsonl")
        counts, rejects, _ = await import_(gateway, named, policy=policy)
        books = await books_of(gateway, workspace_id=policy)
        amounts = [(entry.key, entry.requested_amount, entry.amount, entry.policy) for entry in books.entries[1:]]
        found[policy] = (counts, [each["line"] for each in rejects], amounts)
    reject, partial, force = OverLimitPolicy.REJECT, OverLimitPolicy.PARTIAL, OverLimitPolicy.FORCE
    assert found == {
        reject: (
            NOTHING | {"read": 5, "accepted": 3, "refused": 2},
            [1, 3],
            [("covered", 4, 4, reject), ("beyond", 2, 2, reject), ("forced", 3, 3, force)],
        ),
        partial: (
            NOTHING | {"read": 5, "accepted": 2, "partial": 1, "refused": 2},
            [1, 4],
            [("covered", 4, 4, partial), ("uncovered", 9, 6, partial), ("forced", 3, 3, force)],
        ),
        force: (
            NOTHING | {"read": 5, "accepted": 4, "refused": 1},
            [1],
            [("covered", 4, 4, force), ("uncovered", 9, 9, force), ("beyond", 2, 2, force), ("forced", 3, 3, force)],
        ),
    }
    # The policy is part of an event: under another one it is not the same.
    await make_meter(gateway, totalCredits="10")
    await import_(gateway, file, policy=partial)
    counts = (await import_(gateway, file, policy=force)).counts
    assert counts == NOTHING | {"read": 5, "accepted": 1, "replayed": 1, "conflicts": 2, "refused": 1}
    assert [entry.key for entry in (await books_of(gateway)).entries[1:]] == [
        "covered",
        "uncovered",
        "forced",
        "beyond",
    ]


async def test_old_events_need_backfill(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    old = line("old", occurredAt="2026-02-09T11:59:59.999999Z")
    file = file_of(tmp_path, [old, line("new", occurredAt="2026-02-09T12:00:00Z")])
    counts, rejects, _ = await import_(gateway, file)
    assert counts == NOTHING | {"read": 2, "accepted": 1, "invalid": 1}
    assert [each["input"] for each in rejects] == [old.decode()]
    counts, rejects, _ = await import_(gateway, file, backfill=True)
    assert counts == NOTHING | {"read": 2, "accepted": 1, "replayed": 1}
    assert (await books_of(gateway)).days == {("2026-02-09", "default"): 2}
    # Ahead of time is no matter of backfill.
    ahead = file_of(tmp_path, [line("ahead", occurredAt="2026-03-16T12:05:00.000001Z")])
    async with unchanged(gateway):
        counts = (await import_(gateway, ahead, backfill=True)).counts
    assert counts == NOTHING | {"read": 1, "invalid": 1}


async def test_missing_meters_are_made_only_when_asked_for(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="2")
    lines = [line(f"e{number}", usageName="a", externalMeterId=name) for number in range(3) for name in ("m", "n", "o")]
    file = file_of(tmp_path, lines)
    counts, rejects, _ = await import_(gateway, file)
    assert counts == NOTHING | {"read": 9, "accepted": 2, "refused": 7}
    missing = dict.fromkeys((2, 3, 5, 6, 8, 9), "BILLING_METER_NOT_FOUND")
    assert {each["line"]: each["code"] for each in rejects} == missing | {7: "INSUFFICIENT_CREDITS"}
    data = await gateway.data("{ billingMeters { nodes { externalMeterId } } }")
    assert data == {"billingMeters": {"nodes": [{"externalMeterId": "m"}]}}

    counts, rejects, _ = await import_(gateway, file, create_meters=True)
    assert counts == NOTHING | {"read": 9, "accepted": 6, "replayed": 2, "refused": 1}
    # A meter that there was is left as it is.
    assert [each["line"] for each in rejects] == [7]
    for name in ("n", "o"):
        books = await books_of(gateway, name)
        meter = books.meter
        assert (meter.total_credits, meter.used_credits, meter.allow_overages, meter.spend_cap) == (0, 3, True, None)
        assert [(entry.kind, entry.key) for entry in books.entries] == [
            ("opening", None),
            ("usage", "e0"),
            ("usage", "e1"),
            ("usage", "e2"),
        ]
        assert books.days == {("2026-03-16", "a"): 3}


async def test_an_import_stays_in_its_organization_and_environment(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    file = file_of(tmp_path, [line("e", "3")])
    async with unchanged(gateway):
        for environment, org_id in ((Environment.LIVE, None), (Environment.SANDBOX, f"{gateway.org_id}-other")):
            counts = (await import_(gateway, file, environment=environment, org_id=org_id)).counts
            assert counts == NOTHING | {"read": 1, "refused": 1}
            counts = (await import_(gateway, file, environment=environment, org_id=org_id, create_meters=True)).counts
            assert counts == NOTHING | {"read": 1, "accepted": 1}
    live = await books_of(gateway, environment=Environment.LIVE)
    other = await books_of(gateway, org_id=f"{gateway.org_id}-other")
    assert (live.meter.used_credits, other.meter.used_credits) == (3, 3)


@pytest.mark.slow
async def test_a_compressed_file_that_is_cut_off_is_imported_up_to_there(
    gateway: Gateway, tmp_path: Path, trace: list[bytes]
) -> None:
    whole = gzip.compress(b"".join(text + b"\n" for text in trace[:5_000]))
    cut = whole[: len(whole) // 2]
    file = tmp_path / "cut.jsonl.gz"
    file.write_bytes(cut)
    text = zlib.decompressobj(wbits=31).decompress(cut)
    readable = text.count(b"\n")
    assert 1_000 < readable < 4_000
    counts, rejects, failure = await import_(gateway, file, backfill=True, create_meters=True)
    assert failure is not None
    assert failure.startswith(f"The file cannot be read beyond its first {readable:,} lines: ")
    assert counts == NOTHING | {"read": readable, "accepted": readable}
    assert rejects == []
    books = await books_of(gateway, "conv", workspace_id="azure")
    assert [entry.key for entry in books.entries[1:]] == [json.loads(each)["eventId"] for each in trace[:readable]]

    # The whole file then completes it.
    file.write_bytes(whole)
    counts, rejects, failure = await import_(gateway, file, backfill=True, create_meters=True)
    assert counts == NOTHING | {"read": 5_000, "replayed": readable, "accepted": 5_000 - readable}
    assert (rejects, failure) == ([], None)


async def test_a_compressed_file_that_is_damaged_is_imported_up_to_there(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    whole = gzip.compress(line("e") + b"\n")
    # The last 8 bytes are the sum of the contents and their length; then follows what is no gzip, or no header of it.
    damaged = [whole[:-8] + b"\0" * 8, whole + b"garbage", whole + b"\x1f\x8b", b"\x1f\x8b", b"\x1f\x8b\x09\x09\x09"]
    for number, text in enumerate(damaged):
        file = tmp_path / f"damaged-{number}.jsonl"
        file.write_bytes(text)
        counts, rejects, failure = await import_(gateway, file)
        assert failure is not None
        assert failure.startswith(f"The file cannot be read beyond its first {counts['read']:,} lines: ")
        assert counts["read"] == counts["accepted"] + counts["replayed"]
        assert rejects == []


async def test_what_is_compressed_is_recognized_by_its_first_bytes(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="100")
    text = line("a") + b"\r\n" + line("b")
    for name, contents in {
        "compressed.jsonl": gzip.compress(text),
        "two members": gzip.compress(text[:50]) + gzip.compress(text[50:]),
        "padded.gz": gzip.compress(text) + b"\0" * 1_000,
        "plain.jsonl.gz": text,
        "marked.jsonl": b"\xef\xbb\xbf" + text,
        "marked and compressed": gzip.compress(b"\xef\xbb\xbf" + text),
        # As `cat` makes of marked files.
        "marked twice": b"\xef\xbb\xbf" + text.replace(b"\n", b"\n\xef\xbb\xbf"),
    }.items():
        file = tmp_path / name
        file.write_bytes(contents)
        counts, rejects, failure = await import_(gateway, file)
        assert (counts["read"], counts["accepted"] + counts["replayed"]) == (2, 2), name
        assert (rejects, failure) == ([], None)
    for name, contents in {"one byte": b"\x1f", "mark": b"\xef\xbb\xbf", "nothing.gz": b""}.items():
        (tmp_path / name).write_bytes(contents)
    assert (await import_(gateway, tmp_path / "mark")).counts == NOTHING
    assert (await import_(gateway, tmp_path / "nothing.gz")).counts == NOTHING
    assert (await import_(gateway, tmp_path / "one byte")).counts == NOTHING | {"read": 1, "invalid": 1}
    assert [entry.key for entry in (await books_of(gateway)).entries[1:]] == ["a", "b"]


TEXT = line().decode()


#: By what each is, so that a test's name does not hold the time, as what gzip writes does.
OTHER_FORMATS = {
    "UTF-16 with a mark": (TEXT.encode("utf-16"), "is text in UTF-16"),
    "UTF-16LE": (TEXT.encode("utf-16-le"), "is text in UTF-16"),
    "UTF-16BE": (TEXT.encode("utf-16-be"), "is text in UTF-16"),
    "UTF-16BE with a mark": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is text in UTF-16"),
    "UTF-32": (TEXT.encode("utf-32"), "is text in UTF-32"),
    "UTF-16 in gzip": (gzip.compress(TEXT.encode("utf-16")), "is text in UTF-16"),
    "gzip twice": (gzip.compress(gzip.compress(TEXT.encode())), "is compressed by gzip twice"),
    "bzip2": (bz2.compress(TEXT.encode()), "is compressed by bzip2"),
    "xz": (lzma.compress(TEXT.encode()), "is compressed by xz"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58", "is compressed by zstd"),
    "zip": (b"PK\x03\x04\x14\x00", "is a zip archive"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_another_format_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    contents, what = OTHER_FORMATS[name]
    file = tmp_path / "usage.jsonl"
    file.write_bytes(contents)
    with pytest.raises(NotLines, match=f"^{what}, and lines of JSON in UTF-8 are wanted: "):
        open_lines(str(file))


def test_the_first_bytes_may_come_one_at_a_time(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = gzip.compress(b"\xef\xbb\xbf{}\n" + b"[]")

    def feed() -> None:
        with fifo.open("wb", buffering=0) as stream:
            for byte in text:
                stream.write(bytes([byte]))

    feeding = threading.Thread(target=feed)
    feeding.start()
    with open_lines(str(fifo)) as lines:
        assert (list(lines), lines.size, lines.position) == ([b"\xef\xbb\xbf{}", b"[]"], None, len(text))
    feeding.join()


# The command.


def numbered(lines: int) -> Iterator[bytes]:
    """Return the lines of events of amount 1 on the meter `m`."""
    return (line(f"e{number}") for number in range(lines))


async def test_the_command_reports_what_was_rejected_and_why(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    lines = [line("a", "4"), b"not json", b"", line("b", "7"), line("a", "5"), line("c", "6")]
    file = file_of(tmp_path, lines)
    # Where the command runs, whatever folder the file is in.
    folder = tmp_path / "here"
    folder.mkdir()
    ran = await tollgate_import(gateway, folder, file, "--json")
    assert ran.status == 1
    assert ran.counts() == {
        "read": 5,
        "accepted": 2,
        "partial": 0,
        "replayed": 0,
        "conflicts": 1,
        "refused": 1,
        "invalid": 1,
    }
    assert "Not accepted: 3. Which and why is in usage.jsonl.rejects.jsonl." in ran.stderr
    assert "Traceback" not in ran.stderr
    rejects = [json.loads(each) for each in (folder / "usage.jsonl.rejects.jsonl").read_bytes().splitlines()]
    assert [(each["line"], each["code"], each["input"]) for each in rejects] == [
        (2, "INVALID_INPUT", "not json"),
        (4, "INSUFFICIENT_CREDITS", lines[3].decode()),
        (5, "IDEMPOTENCY_CONFLICT", lines[4].decode()),
    ]
    assert [entry.key for entry in (await books_of(gateway)).entries] == [None, "a", "c"]


async def test_the_command_reads_standard_input_plain_and_compressed(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    text = b"".join(each + b"\n" for each in numbered(1_500))
    inputs = {"plain": text, "compressed": gzip.compress(text)}
    rans = await asyncio.gather(
        *[
            tollgate_import(
                gateway, tmp_path, "-", "--create-meters", "--new-org", "--json", stdin=stdin, org_id=org_id
            )
            for org_id, stdin in inputs.items()
        ]
    )
    for org_id, ran in zip(inputs, rans, strict=True):
        assert ran.status == 0, ran.stderr
        assert ran.counts() == NOTHING | {"read": 1_500, "accepted": 1_500}
        books = await books_of(gateway, org_id=org_id)
        assert books.meter.used_credits == 1_500
        assert [entry.key for entry in books.entries[1:]] == [f"e{number}" for number in range(1_500)]
    assert rejects_files(tmp_path) == []


async def test_the_command_takes_the_policy_and_the_rejects_file(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    for workspace_id in ("w", "x"):
        await make_meter(gateway, workspaceId=workspace_id, totalCredits="10")
    # Ten credits and an eleventh; then one of the line's own policy.
    lines = [line("a", "8"), line("b", "3"), line("c", "1", policy="REJECT")]
    to_partial, to_force = "partial rejects.jsonl", tmp_path / "force.txt"
    partial, force = await asyncio.gather(
        tollgate_import(
            gateway,
            tmp_path,
            file_of(tmp_path, lines, "partial.jsonl"),
            *("--policy", "partial", "--rejects", to_partial, "--json"),
        ),
        tollgate_import(
            gateway,
            tmp_path,
            file_of(tmp_path, [text.replace(b'"w"', b'"x"') for text in lines], "force.jsonl"),
            *("--policy", "force", "--rejects", str(to_force)),
        ),
    )
    assert partial.status == 1
    assert partial.counts() == NOTHING | {"read": 3, "accepted": 1, "partial": 1, "refused": 1}
    assert [json.loads(each)["line"] for each in (tmp_path / to_partial).read_bytes().splitlines()] == [3]
    assert (await books_of(gateway)).meter.used_credits == 10
    assert force.status == 1
    assert [json.loads(each)["line"] for each in to_force.read_bytes().splitlines()] == [3]
    assert (await books_of(gateway, workspace_id="x")).meter.used_credits == 11
    # Without --json it is a table for people.
    for word in ("read", "accepted", "partial", "replayed", "conflicts", "refused", "invalid"):
        assert word in force.stdout
    assert rejects_files(tmp_path) == []


async def test_the_command_reports_why_it_could_not_finish(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    whole = gzip.compress(b"".join(each + b"\n" for each in (*numbered(5), b"bad")))
    cut, missing = await asyncio.gather(
        tollgate_import(gateway, tmp_path, "-", "--json", stdin=whole[:-4]),
        tollgate_import(gateway, tmp_path, "missing.jsonl", "--json"),
    )
    # What came before the end is recorded and counted.
    assert cut.status == 1
    assert cut.counts() == NOTHING | {"read": 6, "accepted": 5, "invalid": 1}
    assert "Not accepted: 1. Which and why is in standard-input.rejects.jsonl.\n" in cut.stderr
    assert "Error: The file cannot be read beyond its first 6 lines: " in cut.stderr
    assert "Traceback" not in cut.stderr
    assert rejects_files(tmp_path) == ["standard-input.rejects.jsonl"]
    assert missing == (1, "", "Error: missing.jsonl cannot be read: No such file or directory\n")
    assert [entry.key for entry in (await books_of(gateway)).entries[1:]] == [f"e{number}" for number in range(5)]


async def test_rejects_that_cannot_be_written_are_reported_before_anything_is_recorded(
    on_sqlite: Gateway, tmp_path: Path
) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    file = file_of(tmp_path, [line("good"), b"bad"])
    async with unchanged(gateway):
        ran = await tollgate_import(gateway, tmp_path, file, "--json", "--rejects", "no/such/folder/rejects.jsonl")
    assert (ran.status, ran.stdout) == (1, "")
    assert "no/such/folder/rejects.jsonl" in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_rejects_are_written_over_nothing(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    file = file_of(tmp_path, [line("good"), b"bad"])
    notes = tmp_path / "notes.txt"
    notes.write_text("precious")
    empty = tmp_path / "empty"
    empty.touch()
    link, lost = tmp_path / "link", tmp_path / "lost"
    link.symlink_to(notes)
    lost.symlink_to("nowhere")
    (tmp_path / "same").hardlink_to(file)
    before = names_in(tmp_path)
    async with unchanged(gateway):
        for name in ("notes.txt", "empty", "link", "lost", "same", "usage.jsonl", "."):
            ran = await tollgate_import(gateway, tmp_path, file, "--json", "--rejects", name)
            assert (ran.status, ran.stdout) == (2, "")
            message = f"--rejects {name} is there already, and nothing is written over: name a file that is not there."
            assert ran.stderr == f"Error: {message}\n"
    assert names_in(tmp_path) == before
    assert (notes.read_text(), file.read_bytes()) == ("precious", line("good") + b"\nbad\n")


async def test_a_file_that_is_not_there_is_not_found_in_its_own_rejects(on_sqlite: Gateway, tmp_path: Path) -> None:
    ran = await tollgate_import(on_sqlite, tmp_path, "usage.jsonl", "--json", "--rejects", "usage.jsonl")
    assert ran == (1, "", "Error: usage.jsonl cannot be read: No such file or directory\n")
    assert rejects_files(tmp_path) == []


async def test_a_name_that_leaves_no_room_for_that_of_the_rejects_is_refused(
    on_sqlite: Gateway, tmp_path: Path
) -> None:
    file = file_of(tmp_path, [b"bad"], "u" * 250)
    ran = await tollgate_import(on_sqlite, tmp_path, file, "--json")
    assert (ran.status, ran.stdout) == (1, "")
    assert ran.stderr == (
        "Error: The file of rejects cannot be made here; name another by --rejects: File name too long\n"
    )


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "recording"])
async def test_one_ctrl_c_ends_an_import_which_says_what_it_recorded(
    on_sqlite: Gateway, tmp_path: Path, *, waits: bool
) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="100000")
    rejects = tmp_path / "rejects"
    os.mkfifo(rejects)
    process = await asyncio.create_subprocess_exec(
        *(TOLLGATE, "import", "-", "--org", gateway.org_id, "--environment", "sandbox", "--json"),
        *("--rejects", rejects),
        env=environment_of(gateway),
        cwd=tmp_path,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    # One group, whose rejects say that it is recorded; and then nothing more, or without an end.
    process.stdin.write(b"".join(each + b"\n" for each in (*numbered(999), b"bad")))
    with rejects.open("rb") as stream:
        assert json.loads(await asyncio.to_thread(stream.readline))["line"] == 1_000

    async def feed() -> None:
        assert process.stdin is not None
        for number in itertools.count(1_000):
            process.stdin.write(line(f"e{number}") + b"\n")
            await process.stdin.drain()

    feeding = asyncio.create_task(asyncio.sleep(0) if waits else feed())
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = await asyncio.gather(process.stdout.read(), process.stderr.read())
    assert await process.wait() == 1
    await asyncio.gather(feeding, return_exceptions=True)
    counts = json.loads(stdout)
    assert (counts["read"], counts["invalid"]) == (counts["accepted"] + 1, 1)
    assert counts["accepted"] >= 999
    assert stderr.decode() == (
        f"Not accepted: 1. Which and why is in {rejects}.\n"
        "Error: The import was interrupted. Run it again to resume it.\n"
    )
    # What was being recorded may be there as well.
    assert (await books_of(gateway)).meter.used_credits >= counts["accepted"]


@pytest.mark.parametrize("soon", [False, True], ids=["at once", "as soon as the event loop runs"])
def test_ctrl_c_between_two_groups_ends_the_import_and_not_the_event_loop(tmp_path: Path, *, soon: bool) -> None:
    """Raised in the event loop's own code it would end the command, which then says nothing of what is recorded."""

    class Pressing(Rejects):
        def write(self, lines: Iterable[bytes]) -> None:
            super().write(lines)
            if soon:
                asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)

    async def import_lines() -> Import:
        services = Services(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/tollgate.db"))
        await migrations.upgrade(services.database)
        file = file_of(tmp_path, [line(f"e{number}") for number in range(3 * GROUP)])
        path = tmp_path / "rejects"
        with Pressing(path, path.open("xb"), is_own=True) as rejects, open_lines(str(file)) as lines:
            usage_import = Import(
                org_id="org",
                environment=Environment.SANDBOX,
                policy=OverLimitPolicy.REJECT,
                backfill=False,
                create_meters=False,
                rejects=rejects,
            )
            await usage_import.run(services, lines, Console(file=io.StringIO()))
        await services.close()
        return usage_import

    usage_import = asyncio.run(import_lines())
    assert usage_import.failure == "The import was interrupted. Run it again to resume it."
    assert usage_import.counts == Counts(read=GROUP, refused=GROUP)


async def test_each_import_in_a_folder_has_rejects_of_its_own(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    files = []
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(file_of(folder, [f"bad {number}".encode()]))
    rans = [await tollgate_import(gateway, tmp_path, files[0])]
    rans += await asyncio.gather(*[tollgate_import(gateway, tmp_path, file) for file in files[1:]])
    named = [ran.stderr.removeprefix("Not accepted: 1. Which and why is in ").removesuffix(".\n") for ran in rans]
    assert sorted(named) == [
        "usage.jsonl.2.rejects.jsonl",
        "usage.jsonl.3.rejects.jsonl",
        "usage.jsonl.rejects.jsonl",
    ]
    assert named[0] == "usage.jsonl.rejects.jsonl"
    for number, name in enumerate(named):
        assert json.loads((tmp_path / name).read_bytes())["input"] == f"bad {number}"
    # A name that a link to nowhere has is not free: what is opened is made, and nothing else.
    (tmp_path / "usage.jsonl.4.rejects.jsonl").symlink_to("nowhere")
    ran = await tollgate_import(gateway, tmp_path, files[0])
    assert ran.stderr == "Not accepted: 1. Which and why is in usage.jsonl.5.rejects.jsonl.\n"
    named += ["usage.jsonl.4.rejects.jsonl", "usage.jsonl.5.rejects.jsonl"]
    # One that rejects nothing leaves nothing, and what there was.
    good = file_of(tmp_path / "0", [line("good")])
    assert (await tollgate_import(gateway, tmp_path, good)).status == 0
    assert rejects_files(tmp_path) == sorted(named)


async def test_rejects_may_go_where_output_goes(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    file = file_of(tmp_path, [line("good"), b"bad"])
    nowhere = await tollgate_import(gateway, tmp_path, file, "--json", "--rejects", os.devnull)
    assert (nowhere.status, nowhere.counts()["invalid"]) == (1, 1)
    to_output = await tollgate_import(gateway, tmp_path, file, "--json", "--rejects", "/dev/stdout")
    rejected, counts = map(json.loads, to_output.stdout.splitlines())
    assert (rejected["input"], counts["invalid"], to_output.status) == ("bad", 1, 1)
    # Also where output is a file, whose beginning is not lost.
    script = f'{{ echo begin; "$0" "$@" --json --rejects /dev/stdout; }} > {tmp_path}/output'
    options = (TOLLGATE, "import", file, "--org", gateway.org_id, "--environment", "sandbox")
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", script, *options), env=environment_of(gateway), stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 1
    begin, first, second = (tmp_path / "output").read_text().splitlines()
    assert (begin, json.loads(first)["input"], json.loads(second)["invalid"]) == ("begin", "bad", 1)


async def test_a_pipe_or_a_device_is_read_as_standard_input_is(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="100")
    file = file_of(tmp_path, [*numbered(3), b"bad"])
    for number, source in enumerate((file.read_bytes(), gzip.compress(file.read_bytes()))):
        ran = await tollgate_import(gateway, tmp_path, "/dev/stdin", "--json", stdin=source)
        assert (ran.status, ran.counts()["invalid"]) == (1, 1), ran.stderr
        assert ran.counts()["replayed" if number else "accepted"] == 3
    script = f'"$0" import <(cat {file}) "$@"'
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", script, TOLLGATE, "--org", gateway.org_id, "--environment", "sandbox", "--json"),
        env=environment_of(gateway),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert Ran(1, stdout.decode(), "").counts() == NOTHING | {"read": 4, "replayed": 3, "invalid": 1}, stderr
    nothing, folder = await asyncio.gather(
        tollgate_import(gateway, tmp_path, os.devnull, "--json"), tollgate_import(gateway, tmp_path, ".", "--json")
    )
    assert (nothing.status, nothing.counts()) == (0, NOTHING)
    assert folder == (1, "", "Error: . cannot be read: Is a directory\n")


async def test_a_pipe_is_not_its_own_rejects(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(FileExistsError):
        rejects_at(fifo, source=str(fifo))


async def test_rejects_that_cannot_be_written_any_more_end_the_import(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    await make_meter(gateway, totalCredits="10")
    file = file_of(tmp_path, [line("good"), b"bad"])
    ran = await tollgate_import(gateway, tmp_path, file, "--json", "--rejects", "/dev/full")
    # What is recorded is counted, and none of it is lost by running it again.
    assert (ran.status, ran.counts()) == (1, NOTHING | {"read": 2, "accepted": 1, "invalid": 1})
    assert (
        "Error: /dev/full cannot be written: No space left on device. "
        "Run the import again, with other --rejects, to resume it.\n"
    ) in ran.stderr


async def test_an_organization_that_no_key_can_see_is_filled_only_when_it_is_said_to_be_new(
    on_sqlite: Gateway, tmp_path: Path
) -> None:
    gateway = on_sqlite
    await gateway.caller(org_id="acme")
    gone, _ = await create_api_key(gateway.database, org_id="gone", environment=Environment.SANDBOX, now=NOW)
    await revoke_api_key(gateway.database, gone.id, now=NOW)
    file = file_of(tmp_path, [line("good")])
    for org_id, meant in (("acmee", "; did you mean 'acme'?"), ("something else", "."), ("gone", ".")):
        ran = await tollgate_import(gateway, tmp_path, file, "--create-meters", "--json", org_id=org_id)
        assert (ran.status, ran.stdout) == (2, "")
        assert ran.stderr == (
            f"Error: No key can see the sandbox environment of the organization {org_id!r}{meant} Make a key for it"
            " first, or name it with --new-org. Nothing was recorded.\n"
        )
    ran = await tollgate_import(gateway, tmp_path, file, "--create-meters", "--new-org", "--json", org_id="acmee")
    assert (ran.status, ran.counts()) == (0, NOTHING | {"read": 1, "accepted": 1})
    assert ran.stderr == (
        "No key can see the sandbox environment of the organization 'acmee' yet: "
        "make one with `tollgate keys create`.\n"
    )
    # A key of the other environment sees nothing of it.
    await gateway.caller(org_id="other", environment=Environment.LIVE)
    ran = await tollgate_import(gateway, tmp_path, file, "--create-meters", "--json", org_id="other")
    assert (ran.status, ran.stdout) == (2, "")
    assert rejects_files(tmp_path) == []


async def test_a_database_without_keys_is_filled_and_the_missing_key_is_reported(tmp_path: Path) -> None:
    file = file_of(tmp_path, [line("good")])
    options = ("--org", "acme", "--environment", "live", "--create-meters", "--json")
    environment = commands.environment()
    done = await asyncio.to_thread(
        commands.run, "import", str(file), *options, folder=tmp_path, environment=environment
    )
    assert done.json == NOTHING | {"read": 1, "accepted": 1}
    assert done.err == (
        "No key can see the live environment of the organization 'acme' yet: make one with `tollgate keys create`.\n"
    )


NOTHING_VISIBLE = "org must have a visible character; it has white space alone."
AROUND = "org must not have white space around it."
UNSEEN = "org must not contain control characters, or others that cannot be seen."


@pytest.mark.parametrize(
    ("org_id", "rule"),
    [
        (" acme", AROUND),
        ("acme ", AROUND),
        ("acme\n", AROUND),
        ("\u00a0acme", AROUND),
        (" ", NOTHING_VISIBLE),
        ("\u3000", NOTHING_VISIBLE),
        ("ac\tme", UNSEEN),
        ("ac\u200bme", UNSEEN),
        ("\ufeffacme", UNSEEN),
        ("ac\u202eme", UNSEEN),
        ("ac\u00a0me", UNSEEN),
        ("ac\u00adme", UNSEEN),
        ("acme\x1b[0m", UNSEEN),
        ("cafe\u0301", "org must be normalized (Unicode NFC): it looks like another name."),
        ("", "org must have 1 to 64 characters; it has 0."),
    ],
)
async def test_no_two_names_of_organizations_look_the_same(org_id: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(rule)}$"):
        check_org("org", org_id)


async def test_an_organization_is_named_by_the_same_rule_everywhere(on_sqlite: Gateway, tmp_path: Path) -> None:
    gateway = on_sqlite
    file = file_of(tmp_path, [line("good")])
    imported = await tollgate_import(gateway, tmp_path, file, "--new-org", "--create-meters", org_id="acme ")
    assert imported == (1, "", f"Error: {AROUND}\n")
    with pytest.raises(InvalidInput, match=f"^{AROUND}$"):
        await gateway.caller(org_id="acme ")
    assert (await gateway.caller(org_id="Café & Söhne")).key


# What is rejected is kept as it was.


def again_from(rejects: Sequence[dict[str, Any]]) -> list[bytes]:
    """Return what the guide's `jq` makes of the rejects: their lines, and of one that is not there, a note."""
    return [(each["input"] or f"line {each['line']} is not here: correct it in the file").encode() for each in rejects]


async def test_a_line_that_is_not_utf_8_is_kept_byte_for_byte_and_becomes_no_other_event(
    gateway: Gateway, tmp_path: Path
) -> None:
    await make_meter(gateway, totalCredits="10")
    latin_1 = [line(name).decode("unicode-escape").encode("latin-1") for name in ("café", "cafè")]
    file = file_of(tmp_path, [latin_1[0], line("good"), latin_1[1]])
    counts, rejects, _ = await import_(gateway, file)
    assert counts == NOTHING | {"read": 3, "accepted": 1, "invalid": 2}
    assert [each["input"] for each in rejects] == [None, None]
    assert [base64.b64decode(each["inputBase64"]) for each in rejects] == latin_1
    place = latin_1[0].index(0xE9)
    assert rejects[0]["message"] == f"line must be JSON in UTF-8: byte {place + 1} of it, 0xE9, is not."
    # The text of each, by whatever means it is taken, never gives another event.
    async with unchanged(gateway):
        again = await import_(gateway, file_of(tmp_path, again_from(rejects), "again.jsonl"))
        nulls = await import_(gateway, file_of(tmp_path, [b"null", b"null"], "nulls.jsonl"))
    # And what is not recorded is not passed over.
    assert again.counts == NOTHING | {"read": 2, "invalid": 2}
    assert nulls.counts == NOTHING | {"read": 2, "invalid": 2}
    # Brought to UTF-8, the whole file adds what was missing.
    utf_8 = tmp_path / "utf-8.jsonl"
    utf_8.write_bytes(file.read_bytes().decode("latin-1").encode())
    counts, rejects, _ = await import_(gateway, utf_8)
    assert counts == NOTHING | {"read": 3, "accepted": 2, "replayed": 1}
    assert [entry.key for entry in (await books_of(gateway)).entries[1:]] == ["good", "café", "cafè"]


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "\ufeff\ufeff{}",
        '{"eventId": "\\ud800"}',
        "nul \0 and unit separator \x1f and delete \x7f",
        "\0" * 1_000,
        "line\u2028separator\u2029and\x85next line",
        "carriage return\rin the middle",
        "  blanks around \t",
        "\U0010ffff\ufffe",
        '"quotes" and \\ backslashes \\u0041',
    ],
)
async def test_a_rejected_line_of_text_is_kept_as_it_was(gateway: Gateway, tmp_path: Path, text: str) -> None:
    file = tmp_path / "usage.jsonl"
    for end in (b"\n", b"\r\n", b""):
        file.write_bytes(text.encode() + end)
        # Without an end of its own, what ends the line is what ended it before.
        (reject,) = (await import_(gateway, file)).rejects
        assert (reject["line"], reject["input"], reject.get("inputBase64")) == (1, text, None)
    # Only one carriage return belongs to the end.
    file.write_bytes(text.encode() + b"\r\r\n")
    (reject,) = (await import_(gateway, file)).rejects
    assert reject["input"] == f"{text}\r"


async def test_a_line_that_is_too_long_is_not_kept_and_its_beginning_becomes_no_event(
    gateway: Gateway, tmp_path: Path
) -> None:
    await make_meter(gateway, totalCredits="10")
    lines = [line("cut").ljust(MAX_LINE_BYTES) + b"and more that is no JSON", line("last")]
    counts, rejects, _ = await import_(gateway, file_of(tmp_path, lines))
    assert counts == NOTHING | {"read": 2, "accepted": 1, "invalid": 1}
    assert rejects == [{"line": 1, "code": INVALID, "message": TOO_LONG, "input": None}]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (line()[:-1] + b', "eventId": "f"}', "eventId"),
        (line()[:-1] + b', "event\\u0049d": "f"}', "eventId"),
        (line("a\\b")[:-1] + b',"amount":"2"}', "amount"),
        (line(metadata={"a": 1}).replace(b'"a": 1', b'"a": 1, "a": 2'), "a"),
        (line(metadata={"a": [{"b": 1}]}).replace(b'"b": 1', b'"b": 1, "b": 1'), "b"),
    ],
)
async def test_a_line_that_names_a_field_twice_is_rejected(
    gateway: Gateway, tmp_path: Path, text: bytes, name: str
) -> None:
    await make_meter(gateway, totalCredits="10")
    async with unchanged(gateway):
        counts, rejects, _ = await import_(gateway, file_of(tmp_path, [text]))
    assert counts == NOTHING | {"read": 1, "invalid": 1}
    assert [(each["message"], each["input"]) for each in rejects] == [
        (f"line must not name {name!r} twice in one object.", text.decode())
    ]


async def test_what_looks_like_a_name_in_a_value_is_no_name(gateway: Gateway, tmp_path: Path) -> None:
    await make_meter(gateway, totalCredits="10")
    lines = [
        line('"eventId": "e", "eventId": "f"', metadata={"a": 'a\\"', "b": {"a": ["a", "a"]}}),
        line("e", metadata={"eventId": "e", "amount": {"amount": 1}}),
        line("é \\ f", usageName="{}:,"),
    ]
    counts, rejects, _ = await import_(gateway, file_of(tmp_path, lines))
    assert (counts, rejects) == (NOTHING | {"read": 3, "accepted": 3}, [])


# Grants and holds.


async def test_events_of_a_meter_with_grants_and_holds_are_imported(gateway: Gateway, tmp_path: Path) -> None:
    walk = Walk(gateway)
    await walk.take("meter 10; grant a 5 p10; grant b 20 60s; hold h 6; hold r 1; release r; wait 60")
    file = file_of(
        tmp_path,
        [
            line("e", "4"),
            line("f", "9"),
            line("h", "1"),
            line("r", "1"),
            line("g", "1000"),
            line("e", "4"),
            line("i", "2"),
        ],
    )
    counts, rejects, failure = await import_(gateway, file)
    assert failure is None
    assert counts == NOTHING | {"read": 7, "accepted": 2, "replayed": 1, "conflicts": 2, "refused": 2}
    codes = [(reject["line"], reject["code"]) for reject in rejects]
    assert codes == [
        (2, "INSUFFICIENT_CREDITS"),
        (3, "IDEMPOTENCY_CONFLICT"),
        (4, "IDEMPOTENCY_CONFLICT"),
        (5, "INSUFFICIENT_CREDITS"),
    ]
    # Of 15 the hold has 5 of `a` and 1 of `b`, which has ended: 10 of the base are left.
    assert [(entry.kind.name, entry.amount, entry.draws) for entry in (await books_of(gateway)).entries[-3:]] == [
        ("EXPIRY", 19, None),
        ("USAGE", 4, [[0, 4]]),
        ("USAGE", 2, [[0, 2]]),
    ]
    await walk.check()
