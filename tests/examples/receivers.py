"""The receivers of webhooks, in Python and in TypeScript, do what their pages say, whatever is sent to them.

Bodies are signed by the libraries that are public, and the receivers charge, refill and report through a real gateway.
`make examples` installs what they need from PyPI and npm.
"""

import asyncio
import functools
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from graphql import build_schema, parse, validate

from tests.examples.conftest import PYTHON_RECEIVER, TYPESCRIPT_RECEIVER, Demo
from tests.examples.receiving import (
    SCHEMA,
    Door,
    Program,
    Signer,
    key_of,
    make_meter,
    refills_of,
    running,
    starting_commands,
)
from tests.servers import PATIENCE_SECONDS

WORKSPACE = "receivers"

AMOUNT = "505"

#: 10 credits are a cent, and a part of one is a whole one.
CENTS = 51

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

#: Automatic refills come with these; without them, what a gateway would send is made up here.
HAS_AUTO_REFILL = "setAutoRefill" in SCHEMA

PYTHON_SIGNER = """
import json, sys
from datetime import UTC, datetime
from standardwebhooks import Webhook
for line in sys.stdin:
    secret, event, at, body = json.loads(line)
    print(Webhook(secret).sign(event, datetime.fromtimestamp(at, UTC), body), flush=True)
"""

NODE_SIGNER = """
import { createInterface } from 'node:readline';
import { Webhook } from 'standardwebhooks';
for await (const line of createInterface(process.stdin)) {
  const [secret, event, at, body] = JSON.parse(line);
  console.log(new Webhook(secret).sign(event, new Date(at * 1000), body));
}
"""


class Receiver(Program):
    """A running receiver, and what it has written into its files."""

    def rows(self, statement: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / ("payments.db" if "charges" in statement else "receiver.db"))) as db:
            db.execute("PRAGMA busy_timeout = 5000")
            found = db.execute(statement, values).fetchall()
            db.commit()
            return found

    def charges(self, meter: str) -> list[tuple[int, str]]:
        try:
            return self.rows("SELECT amount_cents, outcome FROM charges WHERE payer = ?", meter)
        except sqlite3.OperationalError:
            # The first charge makes the table.
            return []

    def state(self, event: str) -> tuple[str, str | None] | None:
        found = self.rows("SELECT state, note FROM events WHERE id = ?", event)
        return found[0] if found else None

    async def ended(self, event: str) -> tuple[str, str | None]:
        """Wait until the event is done or stuck, and return how it ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                state = self.state(event)
                if state is not None and state[0] in {"done", "stuck"}:
                    return state
                await asyncio.sleep(0.05)


class Setting(NamedTuple):
    """All that takes part: the gateway behind its door, a receiver in its language, and the signers."""

    language: str
    demo: Demo
    door: Door
    receiver: Receiver
    signer: Signer
    other_signer: Signer


class Requested:
    """An event of a meter of its own, which requests a refill, and what becomes of it."""

    def __init__(self, setting: Setting, meter: str, event: str, body: dict[str, Any]) -> None:
        self.setting = setting
        self.meter, self.id = meter, event
        self.body = json.dumps(body)
        self.request: str = body["data"]["refill"]["requestId"]

    async def headers(
        self, secret: str = SECRET, *, seconds_ago: int = 0, signer: Signer | None = None
    ) -> dict[str, str]:
        at = int(time.time()) - seconds_ago
        signature = await (signer or self.setting.signer).signature(secret, self.id, at, self.body)
        return {"webhook-id": self.id, "webhook-timestamp": str(at), "webhook-signature": signature}

    async def send(self, **options: Any) -> int:
        return await self.post(await self.headers(**options))

    async def post(self, headers: dict[str, str], body: bytes | None = None) -> int:
        return await self.setting.receiver.post("/webhooks", self.body.encode() if body is None else body, headers)

    async def untouched(self) -> None:
        """Nothing has been kept, charged or asked of the gateway."""
        assert self.setting.receiver.state(self.id) is None
        assert self.setting.receiver.charges(self.meter) == []
        assert self.setting.door.calls_of(self.meter) == self.setting.door.calls_of(self.request) == []

    async def refilled_once(self) -> None:
        """It is done, and there is one charge and one refill."""
        assert await self.setting.receiver.ended(self.id) == ("done", "Charged and refilled.")
        assert self.setting.receiver.charges(self.meter) == [(CENTS, "charged")]
        assert await refills_of(self.setting.demo, WORKSPACE, self.meter) == [AMOUNT]
        if HAS_AUTO_REFILL:
            assert await request_states(self.setting.demo, self.meter) == ["FULFILLED"]


def made_up(meter: str, *, age: timedelta = timedelta(0), workspace: str = WORKSPACE) -> dict[str, Any]:
    """Return a body as a gateway sends it for a request of that age, which is open for an hour."""
    at = datetime.now(UTC) - age
    request = {"requestId": f"request-{meter}", "amount": AMOUNT, "requestedAt": at.isoformat()}
    credits_ = {"totalCredits": "0", "usedCredits": "0", "heldCredits": "0", "availableCredits": "0"}
    named = {"id": "mtr_0", "workspaceId": workspace, "externalMeterId": meter, "customerId": None}
    return {
        "type": "refill.requested",
        "timestamp": at.isoformat(),
        "data": {
            "billingMeter": named | credits_,
            "number": "2",
            "seq": "1",
            "refill": request | {"expiresAt": (at + timedelta(hours=1)).isoformat()},
        },
    }


async def requested(setting: Setting, meter: str) -> Requested:
    """Make a meter that requests a refill, and return the event."""
    made = await make_meter(setting.demo, WORKSPACE, meter)
    if not HAS_AUTO_REFILL:
        return Requested(setting, meter, f"evt_{meter}", made_up(meter))
    named = {"workspaceId": WORKSPACE, "externalMeterId": meter}
    caps = {"maxRefills": 1, "maxCredits": AMOUNT, "windowSeconds": 86_400}
    await setting.demo.ask(
        "mutation ($input: SetAutoRefillInput!) { setAutoRefill(input: $input) { __typename } }",
        input=named | {"mode": "FIXED", "below": "1", "amount": AMOUNT} | caps,
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            data = await setting.demo.ask(
                "query ($meter: ID!) {"
                " events(first: 1, billingMeterId: $meter, types: [REFILL_REQUESTED]) { nodes { id payload } } }",
                meter=made["id"],
            )
            if found := data["events"]["nodes"]:
                return Requested(setting, meter, found[0]["id"], found[0]["payload"])
            await asyncio.sleep(0.1)


async def request_states(demo: Demo, meter: str) -> list[str]:
    """Return the states of what the meter has requested."""
    data = await demo.ask(
        """query ($workspace: String!, $meter: String!) {
            billingMeter(workspaceId: $workspace, externalMeterId: $meter) {
                autoRefill { requests(first: 10) { nodes { state } } }
            }
        }""",
        workspace=WORKSPACE,
        meter=meter,
    )
    return [each["state"] for each in data["billingMeter"]["autoRefill"]["requests"]["nodes"]]


@functools.cache
def built() -> None:
    """Make the types of events as the page says, and check the program by them."""
    # The Makefile has installed the packages, by the same command.
    assert starting_commands(TYPESCRIPT_RECEIVER / "README.md")[0] == "npm ci && npm run build"
    done = subprocess.run(
        ["npm", "run", "build"],  # noqa: S607  # The environment's own, by the PATH that the Makefile sets.
        cwd=TYPESCRIPT_RECEIVER,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


#: What a receiver runs with, out of its example's folder.
FILES = {
    "python": (PYTHON_RECEIVER, (".venv", "receiver.py", "inbox.py", "gateway.py", "payments.py")),
    "typescript": (
        TYPESCRIPT_RECEIVER,
        ("node_modules", "package.json", "receiver.ts", "work.ts", "inbox.ts", "gateway.ts", "payments.ts"),
    ),
}


@pytest.fixture(scope="module", params=["python", "typescript"])
async def setting(
    demo: Demo, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Setting]:
    """A receiver with the demo's gateway behind a door."""
    example, files = FILES[request.param]
    if request.param == "typescript":
        await asyncio.to_thread(built)
    door = Door(demo.server.url)
    receiver = Receiver(
        example,
        tmp_path_factory.mktemp(request.param) / "run",
        files,
        GATEWAY_URL=door.url,
        GATEWAY_KEY=key_of(demo),
        WEBHOOK_SECRET=SECRET,
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(await asyncio.start_server(door.serve, "127.0.0.1", door.port))
        python = stack.enter_async_context(
            Signer.running(PYTHON_RECEIVER / ".venv" / "bin" / "python", "-c", PYTHON_SIGNER, folder=PYTHON_RECEIVER)
        )
        node = stack.enter_async_context(
            Signer.running("node", "--input-type=module", "-e", NODE_SIGNER, folder=TYPESCRIPT_RECEIVER)
        )
        signers = await python, await node
        await stack.enter_async_context(running(receiver))
        # A receiver is sent what the other language's library has signed, too.
        yield Setting(
            request.param, demo, door, receiver, *(signers if request.param == "python" else reversed(signers))
        )


@pytest.fixture
async def event(setting: Setting, request: pytest.FixtureRequest) -> Requested:
    """What a meter that is named after the test requests."""
    return await requested(setting, re.sub(r"\W+", "-", request.node.name))


def mutations(file: Path) -> list[str]:
    return re.findall(r"mutation \(.*?\n}(?=[\"`])", file.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("file", [PYTHON_RECEIVER / "gateway.py", TYPESCRIPT_RECEIVER / "gateway.ts"], ids=["py", "ts"])
def test_what_a_receiver_asks_fits_the_schema(file: Path) -> None:
    refill, fail = mutations(file)
    schema = build_schema(SCHEMA)
    assert validate(schema, parse(refill)) == []
    if HAS_AUTO_REFILL:
        assert validate(schema, parse(fail)) == []


def test_the_python_receiver_is_typed() -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("mypy"),
            *("--config-file", "pyproject.toml", "--python-executable", PYTHON_RECEIVER / ".venv" / "bin" / "python"),
        ],
        cwd=PYTHON_RECEIVER,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "Success: no issues found in 4 source files\n", done.stdout + done.stderr


def test_a_property_that_an_event_has_not_does_not_fit_the_types_made_from_its_schema(tmp_path: Path) -> None:
    built()
    for file in TYPESCRIPT_RECEIVER.glob("*.ts"):
        shutil.copy(file, tmp_path)
    for name in ("tsconfig.json", "package.json", "node_modules"):
        (tmp_path / name).symlink_to(TYPESCRIPT_RECEIVER / name)
    right = (tmp_path / "work.ts").read_text("utf-8")
    (tmp_path / "work.ts").write_text(right.replace("refill.expiresAt", "refill.endsAt"), "utf-8")
    done = subprocess.run(
        [tmp_path / "node_modules/.bin/tsc"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0
    assert "Property 'endsAt' does not exist" in done.stdout


async def test_a_request_is_charged_and_refilled_once_however_often_it_comes(event: Requested) -> None:
    for _ in range(3):
        assert await event.send() == 204
        await event.refilled_once()
    (call,) = event.setting.door.calls_of(event.request)
    assert call == (
        "refillBillingMeter",
        {
            "workspaceId": WORKSPACE,
            "externalMeterId": event.meter,
            "refill": AMOUNT,
            "idempotencyKey": event.request,
        },
    )


async def test_deliveries_at_the_same_time_are_one(event: Requested) -> None:
    assert await asyncio.gather(*(event.send() for _ in range(16))) == [204] * 16
    await event.refilled_once()
    assert len(event.setting.door.calls_of(event.request)) == 1


async def test_two_events_of_one_request_charge_and_refill_once(event: Requested) -> None:
    assert await event.send() == 204
    await event.refilled_once()
    event.id += "_again"
    assert await event.send() == 204
    await event.refilled_once()


async def test_what_the_library_of_the_other_language_has_signed_is_taken(event: Requested) -> None:
    assert await event.send(signer=event.setting.other_signer) == 204
    await event.refilled_once()


async def test_one_right_signature_of_several_is_enough(event: Requested) -> None:
    headers = await event.headers()
    other = await event.headers(OTHER_SECRET)
    headers["webhook-signature"] = f"{other['webhook-signature']} {headers['webhook-signature']}"
    assert await event.post(headers) == 204
    await event.refilled_once()


async def test_what_is_forged_or_old_is_refused_and_not_kept(event: Requested) -> None:
    right = await event.headers()
    assert await event.send(secret=OTHER_SECRET) == 400
    assert await event.send(seconds_ago=360) == 400
    assert await event.send(seconds_ago=-360) == 400
    assert await event.post(right, event.body.replace(AMOUNT, "999").encode()) == 400
    assert await event.post(right, b"") == 400
    assert await event.post(right, b"\xff\xfe") == 400
    for name in right:
        assert await event.post({other: value for other, value in right.items() if other != name}) == 400
    for name in ("webhook-id", "webhook-timestamp"):
        assert await event.post(right | {name: right[name] + "0"}) == 400
    swapped = right["webhook-signature"].swapcase()
    for signature in (
        "v" + swapped[1:],
        "v1",
        "v1,",
        ",",
        "v2" + right["webhook-signature"][2:],
        "v1,\u00fc",
        "v1," + "A" * 4_000,
    ):
        headers = [
            (name, value.encode("latin-1")) for name, value in (right | {"webhook-signature": signature}).items()
        ]
        assert await event.post(dict(headers)) == 400  # type: ignore[arg-type]  # httpx sends bytes as they are.
    await event.untouched()


async def test_a_body_that_is_too_long_is_refused(event: Requested) -> None:
    padded = event.body + " " * (65_537 - len(event.body))
    event.body = padded
    assert await event.send() == 413
    assert await event.post({}, b"x" * 4_000_000) == 413
    await event.untouched()
    event.body = padded[:-1]
    assert await event.send() == 204
    await event.refilled_once()


async def test_events_that_are_not_known_are_taken_and_ignored(event: Requested) -> None:
    event.body = event.body.replace("refill.requested", "meter.renamed")
    assert await event.send() == 204
    await event.untouched()


@pytest.mark.parametrize("fault", ["keep", "lose"], ids=["before the refill", "after the refill"])
async def test_a_receiver_that_is_killed_after_the_charge_refills_once_when_it_is_back(
    event: Requested, fault: str
) -> None:
    receiver, door = event.setting.receiver, event.setting.door
    door.reached.clear()
    door.faults[event.request] = [fault, "keep"]
    assert await event.send() == 204
    async with asyncio.timeout(PATIENCE_SECONDS):
        await door.reached.wait()
    await receiver.end()
    assert receiver.state(event.id) == ("charging", None)
    assert receiver.charges(event.meter) == [(CENTS, "charged")]
    assert await refills_of(event.setting.demo, WORKSPACE, event.meter) == ([AMOUNT] if fault == "lose" else [])
    door.faults.clear()
    await receiver.start()
    # By itself; that it is sent again is not waited for, and changes nothing.
    await event.refilled_once()
    assert await event.send() == 204
    await event.refilled_once()


async def test_a_gateway_that_fails_is_asked_again(event: Requested) -> None:
    event.setting.door.faults[event.request] = ["break", "lose"]
    assert await event.send() == 204
    await event.refilled_once()
    assert len(event.setting.door.calls_of(event.request)) == 3


async def test_a_declined_card_is_reported_and_nothing_is_refilled(setting: Setting) -> None:
    event = await requested(setting, f"declined-{setting.language}")
    setting.door.faults[event.request] = ["break"]
    assert await event.send() == 204
    assert await setting.receiver.ended(event.id) == ("done", "The card was declined.")
    assert await event.send() == 204
    reported = ("failAutoRefill", {"requestId": event.request, "reason": "The card was declined."})
    assert setting.door.calls_of(event.request) == [reported] * 2
    assert setting.receiver.charges(event.meter) == [(CENTS, "declined")]
    assert await refills_of(setting.demo, WORKSPACE, event.meter) == []
    if HAS_AUTO_REFILL:
        assert await request_states(setting.demo, event.meter) == ["FAILED"]


async def test_what_is_charged_and_refused_by_the_gateway_is_left_to_a_person(setting: Setting) -> None:
    event = Requested(setting, "nowhere", "evt_nowhere", made_up("nowhere", workspace="no-such-workspace"))
    assert await event.send() == 204
    state, note = await setting.receiver.ended(event.id)
    assert state == "stuck"
    assert note == "BillingMeterNotFound: There is no billing meter 'nowhere' in workspace 'no-such-workspace'."
    assert f"evt_nowhere needs a person: {note}" in setting.receiver.logged
    assert setting.receiver.charges("nowhere") == [(CENTS, "charged")]
    assert len(setting.door.calls_of("nowhere")) == 1


async def test_a_request_that_has_expired_is_not_charged(setting: Setting) -> None:
    event = Requested(setting, "late", "evt_late", made_up("late", age=timedelta(hours=2)))
    assert await event.send() == 204
    assert await setting.receiver.ended(event.id) == ("done", "The request had expired, and nothing was charged.")
    assert setting.receiver.charges("late") == []
    assert setting.door.calls_of("late") == []


async def test_what_a_receiver_that_was_killed_had_begun_is_ended_by_how_old_it_is(setting: Setting) -> None:
    receiver, names = setting.receiver, [f"{name}-{setting.language}" for name in ("fresh", "late", "long-ago")]
    fresh = await requested(setting, names[0])
    await make_meter(setting.demo, WORKSPACE, names[1])
    late, long_ago = (
        Requested(setting, name, f"evt_{name}", made_up(name, age=timedelta(hours=hours)))
        for name, hours in zip(names[1:], (2, 25), strict=True)
    )
    await receiver.end()
    for event, state in ((fresh, "received"), (late, "charging"), (long_ago, "charging")):
        receiver.rows("INSERT INTO events (id, body, state) VALUES (?, ?, ?)", event.id, event.body, state)
    await receiver.start()
    await fresh.refilled_once()
    # It may have been charged, and so it is refilled.
    assert await receiver.ended(late.id) == ("done", "Charged and refilled.")
    assert receiver.charges(late.meter) == [(CENTS, "charged")]
    assert await refills_of(setting.demo, WORKSPACE, late.meter) == [AMOUNT]
    # By now the provider would charge it anew.
    assert await receiver.ended(long_ago.id) == (
        "stuck",
        "Whether the card was charged is not known, and the provider may have forgotten the key.",
    )
    assert receiver.charges(long_ago.meter) == []


def test_the_pages_name_every_file_of_their_example() -> None:
    for example, files in FILES.values():
        page = (example / "README.md").read_text("utf-8")
        programs = {name for name in files if name.endswith((".py", ".ts"))}
        assert set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) == programs
