"""Webhooks: every event reaches every endpoint that wants it at least once, whatever endpoints do."""

import asyncio
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gateway.workers.webhooks import lanes
from gateway.workers.webhooks.alone import OnlyOne
from gateway.workers.webhooks.deliverer import Deliverer
from gateway.workers.webhooks.sending import Sender
from resolvers.maintenance.copying import copy
from resolvers.webhooks.schedule import DELAYS_SECONDS, JITTER, after
from storage import migrations, webhook_endpoints
from storage.meters import webhook_deliveries
from storage.meters.webhook_deliveries import Attempt, DeliveryRow, DeliveryState, attempts_of
from storage.webhook_endpoints import WebhookEndpointRow
from tests.conftest import NOW, Caller, Gateway, empty_database, gateway_on
from tests.receivers import OK, Behaviour, Received, Receiver, receiving
from tests.refill_walks import RefillWalk
from tests.servers import free_port
from tests.steps import disagreements, execute, make_endpoint, make_meter, must, opened

pytestmark = pytest.mark.slow


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def private(migrated_url: str) -> AsyncIterator[Gateway]:
    """A gateway that delivers when a test says so, also to addresses of the machine's own."""
    async with gateway_on(migrated_url, webhook_private_addresses="on") as gateway:
        yield gateway


@asynccontextmanager
async def deliverer_of(gateway: Gateway) -> AsyncIterator[Deliverer]:
    async with Sender(gateway.services.webhooks) as sender:
        deliverer = Deliverer(gateway.services, sender)
        try:
            yield deliverer
        finally:
            await deliverer.close()


async def look(deliverer: Deliverer) -> None:
    """Send what is due, and write what came of it."""
    deliverer._scanned_at = -math.inf
    while await deliverer.look():
        await deliverer.settled()
        deliverer._scanned_at = -math.inf


async def deliver(gateway: Gateway) -> None:
    """Send what is due, by a gateway that has just started."""
    async with deliverer_of(gateway) as deliverer:
        await look(deliverer)


async def deliveries(gateway: Gateway) -> list[DeliveryRow]:
    """Return all deliveries, the oldest first."""
    table = webhook_deliveries.webhook_deliveries
    async with gateway.database.read() as reader:
        rows = await reader.fetch(select(*[table.c[name] for name in DeliveryRow._fields]).order_by(table.c.id))
    return [DeliveryRow._make(row) for row in rows]


async def endpoint(gateway: Gateway, endpoint_id: str) -> WebhookEndpointRow:
    async with gateway.database.read() as reader:
        return (await webhook_endpoints.by_ids(reader, [endpoint_id]))[endpoint_id]


async def grant(gateway: Gateway, count: int) -> None:
    """Make so many events of the meter `m`."""
    for _ in range(count):
        await must(gateway, "grantCredits", amount="1")


async def test_an_event_reaches_each_endpoint_that_wants_it(private: Gateway, receiver: Receiver) -> None:
    _, secret = await make_endpoint(private, f"{receiver.url}/all")
    await make_endpoint(private, f"{receiver.url}/grants", types=["CREDIT_GRANT_CREATED"])
    await make_endpoint(private, f"{receiver.url}/others", workspaceIds=["other"])
    await make_endpoint(await private.for_new_organization(), f"{receiver.url}/strangers")
    meter_id = await make_meter(private, totalCredits="5")
    await must(private, "grantCredits", amount="7")
    async with deliverer_of(private) as deliverer:
        await look(deliverer)
        assert not await deliverer.look()
    assert sorted((each.path, each.event["type"]) for each in receiver.received) == [
        ("/all", "billing_meter.created"),
        ("/all", "credit_grant.created"),
        ("/grants", "credit_grant.created"),
    ]
    first = next(each for each in receiver.received if each.event["type"] == "billing_meter.created")
    assert first.id == f"evt_{meter_id.removeprefix('mtr_')}_1"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["user-agent"] == "Tollgate-Webhooks"
    assert first.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert first.event["data"]["billingMeter"]["totalCredits"] == "5"
    assert {row.state for row in await deliveries(private)} == {DeliveryState.DELIVERED}
    assert secret.startswith("whsec_")


async def test_each_attempt_waits_longer_and_the_tenth_is_the_last(private: Gateway, receiver: Receiver) -> None:
    receiver.behaviours["/"] = lambda _received: 500
    _, secret = await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    moments = []
    for delay in DELAYS_SECONDS:
        private.clock.forward(seconds=delay * (1 + JITTER))
        moments.append(private.clock())
        await deliver(private)
        # Not before its time.
        await deliver(private)
    (row,) = await deliveries(private)
    assert (row.state, row.tries, row.next_attempt_at) == (DeliveryState.FAILED, 10, None)
    assert [(each.at, each.status, each.error) for each in attempts_of(row)] == [(at, 500, None) for at in moments]
    assert len({each.id for each in receiver.received}) == 1
    assert len({each.body for each in receiver.received}) == 1
    assert [int(each.headers["webhook-timestamp"]) for each in receiver.received] == [
        int(moment.timestamp()) for moment in moments
    ]
    private.clock.forward(days=10)
    await deliver(private)
    assert len(receiver.received) == 10
    assert secret


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("60", 60), ("1", 5), ("999999999", 86_400), ("soon", 5), ("-1", 5), ("", 5)],
)
async def test_an_endpoint_may_ask_to_be_left_alone(
    private: Gateway, receiver: Receiver, asked: str, seconds: int
) -> None:
    receiver.behaviours["/"] = lambda _received: (
        f"HTTP/1.1 503 Busy\r\nretry-after: {asked}\r\ncontent-length: 0\r\n\r\n".encode()
    )
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    (row,) = await deliveries(private)
    assert row.next_attempt_at is not None
    assert seconds <= (row.next_attempt_at - NOW).total_seconds() <= max(seconds, 5 * (1 + JITTER))


async def test_it_may_ask_so_by_a_date(private: Gateway, receiver: Receiver) -> None:
    date = format_datetime(NOW + timedelta(hours=1), usegmt=True)
    receiver.behaviours["/"] = lambda _received: (
        f"HTTP/1.1 429 Slow\r\nretry-after: {date}\r\ncontent-length: 0\r\n\r\n".encode()
    )
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    (row,) = await deliveries(private)
    assert row.next_attempt_at == NOW + timedelta(hours=1)


def endless(_received: Received) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 1_000


#: What an endpoint does, the status, what is noted of it, and whether the event counts as delivered.
BEHAVIOURS: dict[str, tuple[Behaviour, int | None, str | None, bool]] = {
    "answers 500": (lambda _: 500, 500, None, False),
    "answers 404": (lambda _: 404, 404, None, False),
    "answers 202": (lambda _: 202, 202, None, True),
    "leads elsewhere": (
        lambda _: b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
        302,
        "Redirects are not followed.",
        False,
    ),
    "never answers": (lambda _: None, None, "There was no answer within 15 seconds.", False),
    "closes at once": (lambda _: b"", None, "The connection was closed before there was an answer.", False),
    "closes in mid-answer": (
        lambda _: b"HTTP/1.1 200 OK\r\ncontent-le",
        None,
        "The connection was closed before there was an answer.",
        False,
    ),
    "closes in its body": (lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", 200, None, True),
    "answers without end": (endless, 200, None, True),
    "speaks no HTTP": (lambda _: b"hello, world\r\n\r\n", None, "What was answered is no HTTP response.", False),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_only_a_status_of_success_delivers(
    private: Gateway, receiver: Receiver, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.webhooks.sending._TIMEOUT_SECONDS", 0.5)
    does, status, error, is_delivered = BEHAVIOURS[behaviour]
    receiver.behaviours["/"] = does
    _, secret = await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    (row,) = await deliveries(private)
    (attempt,) = attempts_of(row)
    assert (attempt.status, attempt.error) == (status, error)
    assert row.state is (DeliveryState.DELIVERED if is_delivered else DeliveryState.PENDING)
    assert not receiver.at("/elsewhere")
    # And it comes when the endpoint is back.
    receiver.behaviours["/"] = lambda _received: OK
    private.clock.forward(minutes=1)
    await deliver(private)
    (row,) = await deliveries(private)
    assert row.state is DeliveryState.DELIVERED
    (id_,) = {each.id for each in receiver.received}
    assert id_ == (await event_ids(private))[0]
    assert secret


async def event_ids(gateway: Gateway) -> list[str]:
    nodes = (await gateway.data("{ events { nodes { id } } }"))["events"]["nodes"]
    return [node["id"] for node in nodes]


async def test_an_endpoint_that_is_not_there(private: Gateway) -> None:
    await make_endpoint(private, f"http://127.0.0.1:{free_port()}/")
    await make_endpoint(private, f"https://127.0.0.1:{free_port()}/")
    await make_endpoint(private, "https://name.invalid/")
    await make_meter(private)
    await deliver(private)
    errors = [attempts_of(row)[0].error for row in await deliveries(private)]
    assert errors == [*["The host does not take a connection."] * 2, "The host's name cannot be resolved."]


async def test_an_endpoint_that_speaks_no_tls(private: Gateway) -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        await make_endpoint(private, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        await make_meter(private)
        await deliver(private)
    (row,) = await deliveries(private)
    assert attempts_of(row)[0].error == "No TLS connection with a certificate of the host's name can be made."


async def test_a_connection_is_kept_and_one_that_ended_is_opened_again(private: Gateway, receiver: Receiver) -> None:
    await make_endpoint(private, f"{receiver.url}/")
    async with deliverer_of(private) as deliverer:
        await make_meter(private)
        await look(deliverer)
        await grant(private, 1)
        await look(deliverer)
        assert (len(receiver.received), receiver.connections) == (2, 1)
        # The server ends it at the moment in which it is used again.
        receiver.behaviours["/"] = lambda _received: OK if len(receiver.received) != 3 else b""
        await grant(private, 1)
        await look(deliverer)
        assert (len(receiver.received), receiver.connections) == (4, 2)
    assert {row.state for row in await deliveries(private)} == {DeliveryState.DELIVERED}


async def test_a_dead_endpoint_is_in_the_way_of_no_other(
    private: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.behaviours["/dead"] = lambda _received: None
    await make_endpoint(private, f"{receiver.url}/dead")
    await make_endpoint(private, f"{receiver.url}/well")
    await make_meter(private)
    await grant(private, 30)
    async with deliverer_of(private) as deliverer:
        while len(receiver.at("/well")) < 31:
            deliverer._scanned_at = -math.inf
            await deliverer.look()
            await asyncio.sleep(0)
        # As many as may be in flight, and no more.
        await receiver.until(lambda: len(receiver.at("/dead")) == 8)
        assert receiver.most_in_flight["/dead"] == 8
        monkeypatch.setattr("gateway.workers.webhooks.deliverer.CLOSE_SECONDS", 0)
    assert len(receiver.at("/dead")) == 8
    assert Counter(each.id for each in receiver.at("/well")).most_common(1)[0][1] == 1


def test_a_failing_endpoint_gets_one_at_a_time_until_it_recovers() -> None:
    lane = lanes.Lane()
    assert (lane.limit, lane.room) == (8, 8)
    outcomes = [_Outcome(is_delivered=False) for _ in range(10)]
    for outcome in outcomes:
        lane.in_flight += 1
        lane.note(outcome)  # type: ignore[arg-type]  # It has what a lane looks at.
    assert (lane.limit, lane.room) == (1, 1)
    lane.in_flight += 1
    lane.note(_Outcome(is_delivered=True))  # type: ignore[arg-type]  # Likewise.
    assert (lane.limit, lane.room) == (8, 8)


class _Outcome:
    def __init__(self, *, is_delivered: bool) -> None:
        self.is_delivered = is_delivered
        self.attempt = Attempt(NOW, 204 if is_delivered else 500, 1, None)
        self.retry_after_seconds = None


async def test_410_disables_an_endpoint_and_the_others_get_an_event(private: Gateway, receiver: Receiver) -> None:
    receiver.behaviours["/gone"] = lambda _received: 410
    gone_id, _ = await make_endpoint(private, f"{receiver.url}/gone", description="old")
    await make_endpoint(private, f"{receiver.url}/other", types=["WEBHOOK_ENDPOINT_DISABLED"])
    await make_meter(private)
    await grant(private, 3)
    await deliver(private)
    gone = await endpoint(private, gone_id)
    assert gone.disabled_reason == "It answered 410 Gone."
    (received,) = receiver.at("/other")
    assert received.event["type"] == "webhook_endpoint.disabled"
    assert received.event["data"] == {
        "webhookEndpoint": {"id": gone_id, "description": "old"},
        "reason": "It answered 410 Gone.",
    }
    states = Counter((row.endpoint_id == gone_id, row.state) for row in await deliveries(private))
    assert states == {(True, DeliveryState.FAILED): 4, (False, DeliveryState.DELIVERED): 1}
    count = len(receiver.received)
    await grant(private, 1)
    private.clock.forward(days=1)
    await deliver(private)
    assert len(receiver.received) == count


async def test_five_days_of_nothing_but_failures_disable_an_endpoint(private: Gateway, receiver: Receiver) -> None:
    receiver.behaviours["/"] = lambda _received: 500
    endpoint_id, _ = await make_endpoint(private, f"{receiver.url}/")
    # That there was nothing to send is no failure.
    private.clock.forward(days=9)
    await make_meter(private)
    await deliver(private)
    assert (await endpoint(private, endpoint_id)).failing_since == private.clock()
    receiver.behaviours["/"] = lambda _received: OK
    private.clock.forward(days=4)
    await deliver(private)
    assert (await endpoint(private, endpoint_id)).failing_since is None
    receiver.behaviours["/"] = lambda _received: 500
    since = private.clock()
    await grant(private, 1)
    await deliver(private)
    private.clock.now = since + timedelta(days=5) - timedelta(seconds=1)
    await deliver(private)
    assert (await endpoint(private, endpoint_id)).is_enabled
    await grant(private, 1)
    private.clock.now = since + timedelta(days=5)
    await deliver(private)
    assert (await endpoint(private, endpoint_id)).disabled_reason == "For 5 days every attempt has failed."
    assert {row.state for row in await deliveries(private)} == {DeliveryState.DELIVERED, DeliveryState.FAILED}


async def test_what_is_pending_of_an_endpoint_that_is_disabled_or_deleted_is_not_sent(
    private: Gateway, receiver: Receiver
) -> None:
    receiver.behaviours["/deleted"] = receiver.behaviours["/disabled"] = lambda _received: 500
    deleted_id, _ = await make_endpoint(private, f"{receiver.url}/deleted")
    disabled_id, _ = await make_endpoint(private, f"{receiver.url}/disabled")
    await make_meter(private)
    await deliver(private)
    await private.mutate("deleteWebhookEndpoint", "", id=deleted_id)
    await private.mutate("updateWebhookEndpoint", "", id=disabled_id, isEnabled=False)
    private.clock.forward(minutes=1)
    await deliver(private)
    assert len(receiver.received) == 2
    (row,) = await deliveries(private)
    assert (row.endpoint_id, row.state, row.next_attempt_at) == (disabled_id, DeliveryState.FAILED, None)


async def test_two_gateways_send_each_event_once(private: Gateway, receiver: Receiver) -> None:
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await grant(private, 60)
    async with deliverer_of(private) as one, deliverer_of(private) as other:
        await asyncio.gather(look(one), look(other))
        await asyncio.gather(look(one), look(other))
    assert len(receiver.received) == 61
    assert len({each.id for each in receiver.received}) == 61


async def test_what_a_gateway_leaves_is_sent_by_another_when_its_claim_ends(
    private: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.workers.webhooks.deliverer.CLOSE_SECONDS", 0)
    answers: list[bytes | None] = [None, OK]
    receiver.behaviours["/"] = lambda _received: answers.pop(0)
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    async with deliverer_of(private) as dying:
        await dying.look()
        await receiver.until(lambda: len(receiver.received) == 1)
    (claimed,) = await deliveries(private)
    assert (claimed.state, claimed.next_attempt_at) == (DeliveryState.PENDING, NOW + timedelta(seconds=20))
    private.clock.forward(seconds=19)
    await deliver(private)
    assert len(receiver.received) == 1
    private.clock.forward(seconds=1)
    await deliver(private)
    assert [each.id for each in receiver.received] == [receiver.received[0].id] * 2
    (row,) = await deliveries(private)
    assert (row.state, row.tries) == (DeliveryState.DELIVERED, 1)


async def test_an_outcome_counts_only_while_the_claim_is_ones_own(private: Gateway, receiver: Receiver) -> None:
    receiver.behaviours["/"] = lambda _received: 500
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    async with deliverer_of(private) as slow:
        await slow.look()
        while slow._sending:
            await asyncio.wait(slow._sending)
        # Before it is written, the claim ends and another gateway delivers.
        receiver.behaviours["/"] = lambda _received: OK
        private.clock.forward(seconds=20)
        await deliver(private)
    (row,) = await deliveries(private)
    assert (row.state, [attempt.status for attempt in attempts_of(row)]) == (DeliveryState.DELIVERED, [204])


async def test_old_deliveries_are_deleted(private: Gateway, receiver: Receiver) -> None:
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    private.clock.forward(days=20)
    await grant(private, 1)
    await deliver(private)
    private.clock.forward(days=10, seconds=1)
    async with deliverer_of(private) as deliverer:
        await deliverer.outbox._keep_house()
    (row,) = await deliveries(private)
    assert row.number == 2
    assert (private.services.webhook_figures.pending, private.services.webhook_figures.outcomes["DELIVERED"]) == (0, 2)


async def test_events_are_deleted_after_ninety_days_the_oldest_first(private: Gateway) -> None:
    await make_meter(private)
    await grant(private, 2)
    private.clock.forward(days=60)
    await grant(private, 1)
    private.clock.forward(days=30)
    async with deliverer_of(private) as deliverer:
        await deliverer.outbox._keep_house()
        assert len(await event_ids(private)) == 4
        private.clock.forward(seconds=1)
        deliverer.outbox._kept_at = -math.inf
        await deliverer.outbox._keep_house()
    (kept,) = await event_ids(private)
    assert kept.endswith("_4")
    # What is left follows from the ledger, and so does what comes.
    await grant(private, 1)
    assert await disagreements(private.database) == []


async def test_a_name_that_has_a_private_address_is_not_connected_to(
    migrated_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []

    def resolve(host: str, port: int, **_options: Any) -> list[Any]:
        looked_up.append(host)
        # One of its addresses is public.
        addresses = ("192.0.2.1", "127.0.0.1") if host == "special.example" else ("1.1.1.1", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    async with gateway_on(migrated_url) as gateway:
        port = receiver.url.rpartition(":")[2]
        for host in ("special.example", "mixed.example"):
            await make_endpoint(gateway, f"https://{host}:{port}/")
        await make_meter(gateway)
        await deliver(gateway)
        rows = await deliveries(gateway)
    assert [attempts_of(row)[0].error for row in rows] == ["An address of the host is not allowed."] * 2
    assert sorted(looked_up) == ["mixed.example", "special.example"]
    assert receiver.connections == 0


async def test_a_name_is_resolved_once_for_a_connection_which_goes_to_what_was_checked(
    private: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["127.0.0.1", "169.254.169.254"]

    def resolve(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    port = receiver.url.rpartition(":")[2]
    await make_endpoint(private, f"http://changing.example:{port}/")
    await make_meter(private)
    await deliver(private)
    (received,) = receiver.received
    assert received.headers["host"] == f"changing.example:{port}"
    await grant(private, 1)
    await deliver(private)
    assert answers == []
    assert len(receiver.received) == 1
    assert attempts_of((await deliveries(private))[1])[0].error == "An address of the host is not allowed."


async def test_what_was_allowed_is_looked_at_again_when_it_is_sent(migrated_url: str, receiver: Receiver) -> None:
    async with gateway_on(migrated_url, webhook_private_addresses="on") as gateway:
        await make_endpoint(gateway, f"{receiver.url}/")
        await make_meter(gateway)
    async with gateway_on(migrated_url) as gateway:
        await deliver(gateway)
        (row,) = await deliveries(gateway)
    assert attempts_of(row)[0].error == "url must begin with https://."
    assert receiver.connections == 0


def test_a_delay_is_drawn_longer_and_never_shorter() -> None:
    row = DeliveryRow("whd_1", "whe_1", "mtr_1", 1, DeliveryState.PENDING, [], 1, NOW, "c", NOW, NOW)
    failed = Attempt(NOW, 500, 1, None)
    seconds = [
        (tried.next_attempt_at - NOW).total_seconds()
        for _ in range(200)
        if (tried := after(row, failed, now=NOW, retry_after_seconds=None)).next_attempt_at is not None
    ]
    assert min(seconds) >= 300
    assert max(seconds) <= 360
    assert len(set(seconds)) > 100


async def test_a_delivery_keeps_the_newest_attempts(private: Gateway) -> None:
    row = DeliveryRow("whd_1", "whe_1", "mtr_1", 1, DeliveryState.PENDING, [], 0, NOW, "c", NOW, NOW)
    for number in range(60):
        row = row.with_attempt(Attempt(datetime.fromtimestamp(number, UTC), 500, 1, None))
    attempts = attempts_of(row)
    assert (len(attempts), attempts[0].at.timestamp(), attempts[-1].at.timestamp()) == (50, 10, 59)
    await execute(private.database, "DELETE FROM webhook_deliveries")


DELIVERY = "id state nextAttemptAt attempts { at status durationMs error } endpoint { id } event { id type }"


async def deliveries_of(caller: Caller, endpoint_id: str, **variables: Any) -> list[dict[str, Any]]:
    """Return an endpoint's deliveries, as the API shows them."""
    query = f"""query ($id: ID!, $state: WebhookDeliveryState, $first: Int, $after: String) {{ node(id: $id) {{
      ... on WebhookEndpoint {{ deliveries(state: $state, first: $first, after: $after) {{ nodes {{ {DELIVERY} }} }} }}
    }} }}"""
    if "state" not in variables:
        query = query.replace("(state: $state, ", "(").replace("$state: WebhookDeliveryState, ", "")
    nodes: list[dict[str, Any]] = (await caller.data(query, {"id": endpoint_id} | variables))["node"]["deliveries"][
        "nodes"
    ]
    return nodes


async def test_deliveries_are_read_by_endpoint_by_event_and_by_id(private: Gateway, receiver: Receiver) -> None:
    receiver.behaviours["/failing"] = lambda _received: 500
    failing_id, _ = await make_endpoint(private, f"{receiver.url}/failing")
    well_id, _ = await make_endpoint(private, f"{receiver.url}/well", types=["BILLING_METER_CREATED"])
    await make_meter(private)
    await grant(private, 1)
    await deliver(private)
    created, granted = reversed(await event_ids(private))
    newest, oldest = await deliveries_of(private, failing_id)
    (row, *_) = (row for row in await deliveries(private) if row.id == oldest["id"])
    assert row.next_attempt_at is not None
    (attempt,) = attempts_of(row)
    assert oldest == {
        "id": row.id,
        "state": "PENDING",
        "nextAttemptAt": row.next_attempt_at.isoformat().removesuffix("+00:00") + "Z",
        "attempts": [{"at": "2026-03-16T12:00:00Z", "status": 500, "durationMs": attempt.duration_ms, "error": None}],
        "endpoint": {"id": failing_id},
        "event": {"id": created, "type": "BILLING_METER_CREATED"},
    }
    assert newest["event"] == {"id": granted, "type": "CREDIT_GRANT_CREATED"}
    assert await deliveries_of(private, failing_id, state="PENDING") == [newest, oldest]
    assert await deliveries_of(private, failing_id, state="DELIVERED") == []
    assert await deliveries_of(private, failing_id, first=1) == [newest]
    (well,) = await deliveries_of(private, well_id)
    assert (well["state"], well["nextAttemptAt"], [each["status"] for each in well["attempts"]]) == (
        "DELIVERED",
        None,
        [204],
    )
    query = f"query ($id: ID!) {{ node(id: $id) {{ ... on WebhookDelivery {{ {DELIVERY} }} }} }}"
    assert (await private.data(query, {"id": well["id"]}))["node"] == well
    query = f"query ($id: ID!) {{ node(id: $id) {{ ... on Event {{ deliveries {{ nodes {{ {DELIVERY} }} }} }} }} }}"
    of_event = (await private.data(query, {"id": created}))["node"]["deliveries"]["nodes"]
    assert sorted(each["id"] for each in of_event) == sorted([oldest["id"], well["id"]])
    # What was sent to a deleted endpoint went with it.
    await private.mutate("deleteWebhookEndpoint", "", id=failing_id)
    assert (await private.data(query, {"id": created}))["node"]["deliveries"]["nodes"] == [well]
    node = "query ($id: ID!) { node(id: $id) { id } }"
    assert (await private.data(node, {"id": oldest["id"]}))["node"] is None
    other = await private.for_new_organization()
    assert (await other.data(node, {"id": well["id"]}))["node"] is None


async def send_test(caller: Caller, endpoint_id: str) -> dict[str, Any]:
    selection = f"... on SendTestEventSuccess {{ event {{ id type number payload }} delivery {{ {DELIVERY} }} }}"
    return await caller.mutate("sendTestEvent", selection, endpointId=endpoint_id)


async def test_a_test_is_sent_to_its_endpoint_alone(private: Gateway, receiver: Receiver) -> None:
    limited = await private.caller(workspaces=["a"])
    endpoint_id, _ = await make_endpoint(limited, f"{receiver.url}/one", workspaceIds=["a"], types=["ALERT_TRIGGERED"])
    await make_endpoint(private, f"{receiver.url}/other")
    first = await send_test(limited, endpoint_id)
    second = await send_test(private, endpoint_id)
    assert first["event"] == {
        "id": f"evt_w{endpoint_id.removeprefix('whe_')}_1",
        "type": "WEBHOOK_TEST",
        "number": None,
        "payload": {
            "type": "webhook.test",
            "timestamp": NOW.isoformat(),
            "data": {"webhookEndpoint": {"id": endpoint_id, "description": None}},
        },
    }
    assert second["event"]["id"].endswith("_2")
    assert (first["delivery"]["state"], first["delivery"]["event"]["id"]) == ("PENDING", first["event"]["id"])
    await deliver(private)
    assert sorted(each.id for each in receiver.received) == sorted([first["event"]["id"], second["event"]["id"]])
    assert {each.path for each in receiver.received} == {"/one"}
    assert [each["state"] for each in await deliveries_of(limited, endpoint_id)] == ["DELIVERED"] * 2
    await private.mutate("updateWebhookEndpoint", "", id=endpoint_id, isEnabled=False)
    assert (await send_test(private, endpoint_id))["delivery"]["state"] == "FAILED"
    assert (await send_test(await private.for_new_organization(), endpoint_id))["code"] == "WEBHOOK_ENDPOINT_NOT_FOUND"


async def redeliver(caller: Caller, endpoint_id: str, **values: Any) -> dict[str, Any]:
    selection = "... on RedeliverEventsSuccess { scheduled hasMore }"
    return await caller.mutate("redeliverEvents", selection, endpointId=endpoint_id, **values)


async def test_an_event_is_sent_again(private: Gateway, receiver: Receiver) -> None:
    endpoint_id, _ = await make_endpoint(private, f"{receiver.url}/", workspaceIds=["w"])
    await make_meter(private)
    other_id = await make_meter(private, workspaceId="other")
    await deliver(private)
    (event_id,) = [each.id for each in receiver.received]
    again = await redeliver(private, endpoint_id, eventId=event_id)
    assert (again["scheduled"], again["hasMore"]) == (1, False)
    (row,) = await deliveries(private)
    assert (row.state, row.tries, len(row.attempts)) == (DeliveryState.PENDING, 0, 1)
    await deliver(private)
    assert [each.id for each in receiver.received] == [event_id] * 2
    assert receiver.received[0].body == receiver.received[1].body
    (row,) = await deliveries(private)
    assert (row.state, [attempt.status for attempt in attempts_of(row)]) == (DeliveryState.DELIVERED, [204, 204])
    for unknown in (f"evt_{other_id.removeprefix('mtr_')}_1", event_id[:-1] + "9", "evt_1", "x"):
        assert (await redeliver(private, endpoint_id, eventId=unknown))["code"] == "EVENT_NOT_FOUND"
    stranger = await private.for_new_organization()
    assert (await redeliver(stranger, endpoint_id, eventId=event_id))["code"] == "WEBHOOK_ENDPOINT_NOT_FOUND"
    foreign_id, _ = await make_endpoint(stranger, f"{receiver.url}/")
    assert (await redeliver(stranger, foreign_id, eventId=event_id))["code"] == "EVENT_NOT_FOUND"
    await private.mutate("updateWebhookEndpoint", "", id=endpoint_id, isEnabled=False)
    refused = await redeliver(private, endpoint_id, eventId=event_id)
    assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", "endpointId"])


async def test_the_request_of_an_automatic_refill_is_sent_while_it_is_open(
    private: Gateway, receiver: Receiver
) -> None:
    endpoint_id, _ = await make_endpoint(private, f"{receiver.url}/", types=["REFILL_REQUESTED"])
    receiver.behaviours["/"] = lambda _: 500
    walk = RefillWalk(private)
    await walk.begin(requestSeconds=60)
    await walk.use(95)
    await deliver(private)
    (first,) = receiver.received
    assert first.event["data"]["refill"]["requestId"] == walk.id_of(1)
    # What was given before it was closed fails without being sent.
    private.clock.forward(seconds=60)
    await deliver(private)
    (row,) = await deliveries(private)
    assert (row.state, row.next_attempt_at, len(receiver.received)) == (DeliveryState.FAILED, None, 1)
    refused = await redeliver(private, endpoint_id, eventId=first.id)
    assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", "eventId"])
    begin, end = (moment.isoformat() for moment in (NOW - timedelta(days=1), NOW + timedelta(days=1)))
    private.clock.forward(seconds=601)
    await redeliver(private, endpoint_id, **{"from": begin, "before": end})
    await deliver(private)
    assert len(receiver.received) == 1
    # One that is closed before it is given is never sent, and one that is open is sent again.
    await walk.use(1)
    await walk.refill(2, 46)
    await deliver(private)
    assert len(receiver.received) == 1
    receiver.behaviours.clear()
    await walk.use(45)
    await deliver(private)
    third = receiver.received[-1]
    assert third.event["data"]["refill"]["requestId"] == walk.id_of(3)
    assert (await redeliver(private, endpoint_id, eventId=third.id))["scheduled"] == 1
    await deliver(private)
    assert [each.id for each in receiver.received] == [first.id, third.id, third.id]


async def test_the_undelivered_events_of_a_range_are_sent_again(
    private: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.webhooks.redelivery.MAX_SCHEDULED", 2)
    await make_meter(private)
    endpoint_id, _ = await make_endpoint(
        private, f"{receiver.url}/", types=["CREDIT_GRANT_CREATED", "BILLING_METER_CREATED"]
    )
    await deliver(private)
    receiver.received.clear()
    private.clock.forward(hours=1)
    await grant(private, 3)
    await deliver(private)
    assert len(receiver.received) == 3
    span = {"from": NOW.isoformat(), "before": private.clock().isoformat()}
    # The one from before the endpoint was there is given when it is made; the range ends before the others.
    assert (await redeliver(private, endpoint_id, **span))["scheduled"] == 0
    span["before"] = (private.clock() + timedelta(seconds=1)).isoformat()
    assert (await redeliver(private, endpoint_id, **span))["scheduled"] == 0
    private.clock.forward(hours=1)
    await execute(private.database, "UPDATE webhook_deliveries SET state = 'failed'")
    first = await redeliver(private, endpoint_id, **span)
    assert (first["scheduled"], first["hasMore"]) == (2, True)
    second = await redeliver(private, endpoint_id, **span)
    assert (second["scheduled"], second["hasMore"]) == (2, False)
    assert (await redeliver(private, endpoint_id, **span))["scheduled"] == 0
    receiver.received.clear()
    await deliver(private)
    assert len({each.id for each in receiver.received}) == len(receiver.received) == 4
    # All of them, whatever has become of them, but for what was opened a moment ago.
    assert (await redeliver(private, endpoint_id, **span, undeliveredOnly=False))["scheduled"] == 0
    private.clock.forward(minutes=11)
    counts = [await redeliver(private, endpoint_id, **span, undeliveredOnly=False) for _ in range(3)]
    assert [each["scheduled"] for each in counts] == [2, 2, 0]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "eventId"),
        ({"eventId": None}, "eventId"),
        ({"from": None, "before": "2026-01-02T00:00:00Z"}, "from"),
        ({"from": "2026-01-01T00:00:00Z"}, "before"),
        ({"before": "2026-01-01T00:00:00Z"}, "from"),
        ({"from": "2026-01-01T00:00:00Z", "before": "2026-01-01T00:00:00Z"}, "before"),
        ({"eventId": "evt_1", "before": "2026-01-01T00:00:00Z"}, "eventId"),
    ],
)
async def test_a_redelivery_names_one_event_or_a_range(gateway: Gateway, values: dict[str, Any], field: str) -> None:
    endpoint_id, _ = await make_endpoint(gateway, "https://example.com/")
    refused = await redeliver(gateway, endpoint_id, **values)
    assert (refused["code"], refused["field"]) == ("INVALID_INPUT", ["input", field])


async def test_a_burst_takes_as_many_statements_as_one_event(private: Gateway, receiver: Receiver) -> None:
    await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    counts = []
    for count in (1, 8):
        await grant(private, count)
        async with deliverer_of(private) as deliverer:
            with private.statements() as statements:
                deliverer._scanned_at = -math.inf
                await deliverer.look()
                while deliverer._sending:
                    await asyncio.wait(deliverer._sending)
                await deliverer.outbox.flush()
        counts.append(len(statements))
    # Whether there are new ones and what waits; the new ones, their endpoints, the deliveries and the marks; then the
    # locks of what is claimed, and what came of it.
    assert counts == [8, 8]
    assert len(receiver.received) == 10


async def test_a_copy_sends_nothing_that_the_other_database_sends(
    private: Gateway, receiver: Receiver, dialect: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    receiver.behaviours["/"] = lambda _received: 500
    endpoint_id, _ = await make_endpoint(private, f"{receiver.url}/")
    await make_meter(private)
    await deliver(private)
    await grant(private, 1)
    (tmp_path / "copy").mkdir()
    async with opened(empty_database(dialect, request, tmp_path / "copy")) as target:
        await migrations.begin_copy(target)
        copied = await copy(private.database, target)
        assert (copied.rows["webhook_endpoints"], copied.rows["webhook_deliveries"]) == (1, 1)
        url = target.url.render_as_string(hide_password=False)
    async with gateway_on(url, webhook_private_addresses="on") as other:
        other.clock.forward(minutes=1)
        row = await endpoint(other, endpoint_id)
        assert row.disabled_reason == "It was copied from another database, which may still send to it."
        await deliver(other)
        assert [delivery.state for delivery in await deliveries(other)] == [DeliveryState.FAILED]
    assert len(receiver.received) == 1
    assert (await endpoint(private, endpoint_id)).is_enabled


def test_of_several_processes_on_sqlite_one_delivers(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    one, other = OnlyOne(file), OnlyOne(file)
    assert one.take()
    assert one.take()
    assert not other.take()
    one.release()
    assert other.take()
    assert not one.take()
    other.release()
