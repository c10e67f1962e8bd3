"""`/metrics`: who may read it, and that it exposes exactly what happened, also of several processes."""

import asyncio
import hashlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.telemetry.figures import FIGURES
from gateway.telemetry.metrics import MAX_OPERATIONS
from gateway.telemetry.processes import start_time
from gateway.workers.sweeper import sweep
from tests.comparisons import recorded_comparisons
from tests.conftest import Caller, Gateway, gateway_on
from tests.operations import READ_METER, RECORD_USAGE
from tests.scraping import BEARER, TOKEN, Samples, samples
from tests.servers import Server, serving
from tests.steps import execute, make_meter, must


@pytest.fixture
async def measured(database_url: str) -> AsyncIterator[Gateway]:
    async with gateway_on(database_url, metrics_token=TOKEN) as gateway:
        yield gateway


def risen(before: Samples, after: Samples) -> Samples:
    """Return what has changed, process figures and durations aside."""
    return {
        key: value - before.get(key, 0)
        for key, value in after.items()
        if value != before.get(key, 0)
        and not key[0].startswith(("process_", "python_"))
        and not re.search("_seconds_(bucket|sum)$", key[0])
    }


async def record(caller: Caller, event_id: str, amount: int, **values: Any) -> None:
    event = {"workspaceId": "w", "externalMeterId": "m", "eventId": event_id, "amount": str(amount)}
    await caller.data(RECORD_USAGE, {"input": event | values})


class TestWhoMayRead:
    async def test_it_is_off_unless_there_is_a_token(self, gateway: Gateway) -> None:
        for headers in ({}, BEARER, {"authorization": f"Bearer {gateway.key}"}):
            assert (await gateway.client.get("/metrics", headers=headers)).status_code == 404

    @pytest.mark.parametrize(
        "given", [None, "", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"]
    )
    async def test_it_wants_the_token(self, measured: Gateway, given: str | None) -> None:
        headers = {"authorization": given} if given is not None else {}
        response = await measured.client.get("/metrics", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert "tollgate_" not in response.text

    @pytest.mark.parametrize("given", [TOKEN, "x", f"{TOKEN}x", f"{TOKEN[:-1]}x"])
    async def test_it_is_compared_by_its_digest_in_constant_time(
        self, measured: Gateway, given: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared = recorded_comparisons(monkeypatch)
        response = await measured.client.get("/metrics", headers={"authorization": f"Bearer {given}"})
        assert response.status_code == (200 if given == TOKEN else 401)
        # Of one length, however long what was sent is.
        assert compared == [tuple(hashlib.sha256(each.encode()).digest() for each in (given, TOKEN))]

    async def test_a_key_is_not_the_token_and_the_token_is_no_key(self, measured: Gateway) -> None:
        response = await measured.client.get("/metrics", headers={"authorization": f"Bearer {measured.key}"})
        assert response.status_code == 401
        assert (await measured.client.post("/graphql", headers=BEARER)).status_code == 401


class TestFigures:
    async def test_requests_are_counted_by_operation_and_outcome(self, measured: Gateway) -> None:
        await make_meter(measured)
        before = await samples(measured.client)
        await measured.data(READ_METER, {"w": "w", "m": "m"})
        await measured.data(READ_METER, {"w": "w", "m": "m"})
        await measured.run(READ_METER)
        await measured.data("{ __typename }")
        await measured.run("{ nope }")
        await measured.client.post("/graphql")
        await measured.client.get("/api/v1/usage/mtr_1", headers={"authorization": f"Bearer {measured.key}"})
        await measured.client.get("/nowhere")
        await measured.client.get("/healthz")
        assert risen(before, await samples(measured.client)) == {
            ("tollgate_requests_total", "Meter", "OK"): 2,
            ("tollgate_requests_total", "Meter", "BAD_USER_INPUT"): 1,
            ("tollgate_requests_total", "(anonymous)", "OK"): 1,
            ("tollgate_requests_total", "(none)", "GRAPHQL_VALIDATION_FAILED"): 1,
            ("tollgate_requests_total", "(none)", "UNAUTHENTICATED"): 1,
            ("tollgate_requests_total", "(none)", "BAD_USER_INPUT"): 1,
            ("tollgate_requests_total", "GET /api/v1/usage/…", "OK"): 1,
            ("tollgate_request_duration_seconds_count", "Meter"): 3,
            ("tollgate_request_duration_seconds_count", "(anonymous)"): 1,
            ("tollgate_request_duration_seconds_count", "(none)"): 3,
            ("tollgate_request_duration_seconds_count", "GET /api/v1/usage/…"): 1,
            # The meter's: what is no id is not looked up.
            ("tollgate_sql_statements_total",): 2,
        }

    async def test_usage_is_counted_by_what_became_of_it(self, measured: Gateway) -> None:
        await make_meter(measured, totalCredits="100")
        before = await samples(measured.client)
        await record(measured, "a", 30)
        await record(measured, "a", 30)
        await record(measured, "a", 31)
        await record(measured, "b", 80)
        await record(measured, "c", 80, policy="PARTIAL")
        await record(measured, "d", 0)
        await record(measured, "e", 1, externalMeterId="nobody's")
        counted = risen(before, await samples(measured.client))
        buckets = {key[1]: value for key, value in counted.items() if key[0] == "tollgate_usage_group_events_bucket"}
        assert buckets == dict.fromkeys(BOUNDS_OF_EVENTS, 7)
        usage = {
            key: value
            for key, value in counted.items()
            if key[0].startswith("tollgate_usage_") and not key[0].endswith("_bucket")
        }
        assert usage == {
            ("tollgate_usage_events_total", "ACCEPTED"): 1,
            ("tollgate_usage_events_total", "REPLAYED"): 1,
            ("tollgate_usage_events_total", "IDEMPOTENCY_CONFLICT"): 1,
            ("tollgate_usage_events_total", "INSUFFICIENT_CREDITS"): 1,
            ("tollgate_usage_events_total", "PARTIAL"): 1,
            ("tollgate_usage_events_total", "CHECKED"): 1,
            ("tollgate_usage_events_total", "BILLING_METER_NOT_FOUND"): 1,
            # 30, and the 70 that were left.
            ("tollgate_usage_credits_total", "ACCEPTED"): 100,
            # 80, and the 10 of the other 80.
            ("tollgate_usage_credits_total", "REFUSED"): 90,
            ("tollgate_usage_group_events_count",): 7,
            ("tollgate_usage_group_events_sum",): 7,
            ("tollgate_usage_group_duration_seconds_count",): 7,
            ("tollgate_usage_wait_seconds_count",): 7,
        }

    async def test_grants_and_holds_are_counted_by_what_is_written_of_them(self, measured: Gateway) -> None:
        await make_meter(measured, totalCredits="10")
        before = await samples(measured.client)
        kinds = ("GRANT", "REVOCATION", "EXPIRY", "HOLD", "RELEASE", "HOLD_EXPIRY")
        assert [before["tollgate_credit_entries_total", kind] for kind in kinds] == [0] * 6
        ends = (measured.clock.now + timedelta(seconds=10)).isoformat()
        for _ in range(2):  # The second one is a replay.
            await must(measured, "grantCredits", amount="5", expiresAt=ends, idempotencyKey="g")
        for hold_id in ("a", "b", "c"):
            await must(measured, "holdCredits", holdId=hold_id, amount="2", expiresInSeconds=5)
        await must(measured, "commitHold", holdId="a", amount="3")
        await must(measured, "commitHold", holdId="a", amount="3")
        await must(measured, "commitHold", holdId="b", amount="0")
        measured.clock.forward(seconds=10)
        await measured.mutate("commitHold", "", workspaceId="w", externalMeterId="m", holdId="c", amount="1")
        found = risen(before, await samples(measured.client))
        of_credits: dict[str, dict[str, float]] = {
            key[0][9:]: {} for key in found if key[0].startswith("tollgate_credit_")
        }
        for key, value in found.items():
            if key[0][9:] in of_credits:
                of_credits[key[0][9:]][key[1]] = value
        assert of_credits == {
            "credit_entries_total": {"GRANT": 1, "HOLD": 3, "RELEASE": 1, "HOLD_EXPIRY": 1, "EXPIRY": 1},
            "credit_entry_credits_total": {"GRANT": 5, "HOLD": 6, "RELEASE": 2, "HOLD_EXPIRY": 2, "EXPIRY": 3},
        }
        assert {key[1]: value for key, value in found.items() if key[0] == "tollgate_usage_events_total"} == {
            "ACCEPTED": 1,
            "REPLAYED": 1,
            "HOLD_NOT_OPEN": 1,
        }
        assert found["tollgate_usage_credits_total", "ACCEPTED"] == 3

    async def test_what_is_overdue_is_counted_at_each_look(self, migrated_url: str) -> None:
        # A database of its own: meters of other tests are overdue by then, too.
        async with gateway_on(migrated_url, metrics_token=TOKEN) as gateway:
            await make_meter(gateway, totalCredits="10")
            await must(gateway, "holdCredits", holdId="h", amount="2", expiresInSeconds=5)
            for seconds, overdue in ((0, 0), (5 + 60, 1), (0, 0)):
                gateway.clock.forward(seconds=seconds)
                await sweep(gateway.services)
                assert (await samples(gateway.client))["tollgate_overdue_meters",] == overdue

    async def test_a_group_is_counted_once_and_each_wait_for_it(self, measured: Gateway) -> None:
        await make_meter(measured, totalCredits="100")
        await record(measured, "first", 1)
        before = await samples(measured.client)
        await asyncio.gather(*[record(measured, f"e{number}", 1) for number in range(10)])
        counted = risen(before, await samples(measured.client))
        groups = counted["tollgate_usage_group_events_count",]
        assert counted["tollgate_usage_group_events_sum",] == 10
        assert counted["tollgate_usage_wait_seconds_count",] == 10
        assert counted["tollgate_usage_group_duration_seconds_count",] == groups
        assert counted["tollgate_usage_credits_total", "ACCEPTED"] == 10
        # However many groups they made, there was no statement besides those of the groups.
        assert 1 <= groups < 10

    async def test_a_bug_is_counted_from_0_whatever_it_happens_in(self, measured: Gateway) -> None:
        caller = await measured.caller()

        await execute(
            measured.database, "UPDATE api_keys SET scopes = 'planted' WHERE org_id = :org", org=measured.org_id
        )
        before = await samples(measured.client)
        assert before["tollgate_bugs_total",] == 0
        response = await measured.client.post("/graphql", headers={"authorization": f"Bearer {caller.key}"})
        assert response.status_code == 500
        assert risen(before, await samples(measured.client)) == {
            ("tollgate_bugs_total",): 1,
            ("tollgate_requests_total", "(none)", "INTERNAL_SERVER_ERROR"): 1,
            ("tollgate_request_duration_seconds_count", "(none)"): 1,
            ("tollgate_sql_statements_total",): 1,
        }

    @pytest.mark.one_server("it counts the connections to one server")
    async def test_what_happens_at_the_moment_is_exposed(self, measured: Gateway) -> None:
        found = await samples(measured.client)
        assert found["tollgate_requests_in_flight",] == 0  # But this one.
        assert found["tollgate_usage_waiting_events",] == 0
        of_all = measured.database.dialect == "postgresql"
        reading, writing = ("all", "all") if of_all else ("reading", "writing")
        assert found["tollgate_database_connections_awaited", reading] == 0
        assert found["tollgate_database_connections_max", reading] == (8 if of_all else 4)
        assert found["tollgate_database_connections_max", writing] == (8 if of_all else 1)
        is_enough, is_begun = asyncio.Event(), asyncio.Event()

        async def hold(_writer: object) -> None:
            is_begun.set()
            await is_enough.wait()

        holding = asyncio.create_task(measured.database.write(hold))
        await is_begun.wait()
        found = await samples(measured.client)
        assert found["tollgate_database_connections_in_use", writing] == 1
        is_enough.set()
        await holding
        found = await samples(measured.client)
        assert found["tollgate_database_connections_in_use", writing] == 0

    async def test_processes_expose_their_memory_and_time(self, measured: Gateway) -> None:
        found = await samples(measured.client)
        pid = str(os.getpid())
        assert found["process_resident_memory_bytes", pid] > 10_000_000
        assert found["process_cpu_seconds_total", pid] > 0

    @pytest.mark.slow
    async def test_callers_cannot_make_names_without_end(self, measured: Gateway) -> None:
        for number in range(MAX_OPERATIONS + 20):
            await measured.data(f"query Q{number} {{ __typename }}")
        found = await samples(measured.client)
        names = {key[1] for key in found if key[0] == "tollgate_requests_total"}
        assert names == {f"Q{number}" for number in range(MAX_OPERATIONS)} | {"(other)"}
        assert found["tollgate_requests_total", "(other)", "OK"] == 20

    @pytest.mark.slow
    async def test_trusted_documents_have_names_of_their_own_however_many_there_are(
        self, database_url: str, tmp_path: Path
    ) -> None:
        manifest = {f"id{number}": f"query T{number} {{ __typename }}" for number in range(MAX_OPERATIONS + 20)}
        (tmp_path / "documents.json").write_text(json.dumps(manifest))
        async with gateway_on(database_url, metrics_token=TOKEN, documents=str(tmp_path / "documents.json")) as gateway:
            bearer = {"authorization": f"Bearer {gateway.key}"}
            for document_id in manifest:
                await gateway.client.post("/graphql", json={"documentId": document_id}, headers=bearer)
            await gateway.data("query OfACaller { __typename }")
            found = await samples(gateway.client)
        names = {key[1] for key in found if key[0] == "tollgate_requests_total"}
        assert names == {f"T{number}" for number in range(MAX_OPERATIONS + 20)} | {"OfACaller"}

    def test_names_follow_the_conventions(self) -> None:
        for figure in FIGURES:
            assert re.fullmatch("tollgate_[a-z_]+", figure.name)
            assert not figure.name.endswith("_total")  # The library adds it to what only grows.
            assert figure.what.endswith(".")


def pids_in(figures: Samples) -> set[int]:
    return {int(key[1]) for key in figures if key[0] == "process_resident_memory_bytes"}


async def scraped(server: Server, *, counting: str, after: Samples | None = None) -> Samples:
    """Let a process count a request and expose all figures, none of which may have become less, and return them.

    It is asked again where it was ended meanwhile. `asked` is how many requests were answered.
    """
    while True:
        # A connection each, so that any process may have it.
        async with server.client() as client:
            try:
                await Caller(client, counting).data("query Counted { viewer { orgId } }")
                found = await samples(client)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
        for key, value in (after or {}).items():
            if key[0].endswith(("_total", "_count", "_bucket", "_sum")) and not key[0].startswith("process_"):
                assert found[key] >= value, key
        return found | {("asked",): (after or {}).get(("asked",), 0) + 1}


#: The bounds of a group's size, as they are written.
BOUNDS_OF_EVENTS = (*(str(float(2**power)) for power in range(10)), "1000.0", "+Inf")


class TestSeveralProcesses:
    async def test_what_another_program_left_in_the_folder_is_passed_over(
        self, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        of_another_release = {"pid": 1, "started": "1", "values": {"tollgate_bugs": [[["a label"], [1]]]}}
        texts = ["", "no JSON", "null", "[]", "{}", '{"pid": 1, "values": 7}', json.dumps(of_another_release)]
        for number, foreign in enumerate(texts):
            (tmp_path / f"{number}.json").write_text(foreign)
        (tmp_path / "folder.json").mkdir()
        async with gateway_on(database_url, metrics_token=TOKEN, metrics_folder=str(tmp_path)) as gateway:
            await gateway.data("query Counted { viewer { orgId } }")
            found = await samples(gateway.client)
        assert found["tollgate_requests_total", "Counted", "OK"] == 1
        assert found["tollgate_bugs_total",] == 0
        logged = [record.getMessage() for record in caplog.records if record.name == "gateway.telemetry.metrics"]
        left = [f"{number}.json" for number in range(len(texts))] + ["folder.json"]
        assert [message.rpartition("/")[2] for message in logged] == left

    @pytest.mark.parametrize(("is_the_same", "in_flight"), [(True, 5), (False, 0)])
    async def test_a_process_that_has_anothers_number_is_not_that_one(
        self, database_url: str, tmp_path: Path, *, is_the_same: bool, in_flight: int
    ) -> None:
        values = {"tollgate_requests_in_flight": [[[], [5]]], "tollgate_sql_statements": [[[], [1_000_000]]]}
        started = start_time(os.getpid()) if is_the_same else "1"
        left = {"pid": os.getpid(), "started": started, "values": values}
        (tmp_path / "left.json").write_text(json.dumps(left))
        async with gateway_on(database_url, metrics_token=TOKEN, metrics_folder=str(tmp_path)) as gateway:
            found = await samples(gateway.client)
        assert found["tollgate_requests_in_flight",] == in_flight
        # What it counted stays.
        assert found["tollgate_sql_statements_total",] >= 1_000_000

    async def test_one_that_is_killed_leaves_what_it_has_exposed_and_no_figure_of_the_moment(
        self, on_sqlite: Gateway, tmp_path: Path
    ) -> None:
        url, key = on_sqlite.services.settings.database_url, on_sqlite.key
        async with serving(
            url, tmp_path, TOLLGATE_METRICS_TOKEN=TOKEN, TOLLGATE_WORKERS="2", TMPDIR=str(tmp_path)
        ) as server:
            figures = await scraped(server, counting=key)
            async with asyncio.timeout(60):
                while len(pids_in(figures)) < 2:
                    await asyncio.sleep(0.25)
                    figures = await scraped(server, counting=key, after=figures)
            # One, whichever it is, and then all that are there.
            for killed in ({min(pids_in(figures))}, None):
                for _ in range(10):
                    figures = await scraped(server, counting=key, after=figures)
                killed = killed or pids_in(figures)  # noqa: PLW2901  # It is known only now.
                for pid in killed:
                    os.kill(pid, signal.SIGSTOP)
                # The parent, which asks twice a second, waits for an answer when they are killed.
                await asyncio.sleep(1)
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(40):
                    while len(pids_in(figures) - killed) < 2:
                        await asyncio.sleep(0.25)
                        figures = await scraped(server, counting=key, after=figures)
                        assert not pids_in(figures) & killed
                        assert figures["tollgate_database_connections_max", "reading"] == 4 * len(pids_in(figures))
            counts = [value for key, value in figures.items() if key[:2] == ("tollgate_requests_total", "Counted")]
            # None that was exposed is lost, however many lives the processes had.
            assert counts >= [figures["asked",]]

    async def test_their_figures_are_added_up(self, on_sqlite: Gateway, tmp_path: Path) -> None:
        url, key = on_sqlite.services.settings.database_url, on_sqlite.key
        async with serving(
            url, tmp_path, TOLLGATE_METRICS_TOKEN=TOKEN, TOLLGATE_WORKERS="2", TMPDIR=str(tmp_path)
        ) as server:
            folders = list(tmp_path.glob("tollgate-metrics-*"))  # noqa: ASYNC240  # It is a folder of the test's own.
            for _ in range(40):
                # A connection each, so that both processes have some.
                async with server.client() as client:
                    caller = Caller(client, key)
                    await caller.data("query Counted { viewer { orgId } }")
            found: Samples = {}
            async with asyncio.timeout(60):
                while found.get(("tollgate_requests_total", "Counted", "OK")) != 40:
                    await asyncio.sleep(0.2)  # The other process leaves its figures once a second.
                    async with server.client() as client:
                        found = await samples(client)
            pids = {key[1] for key in found if key[0] == "process_resident_memory_bytes"}
            assert len(pids) == 2
            assert found["tollgate_request_duration_seconds_count", "Counted"] == 40
            assert len(folders) == 1
        assert not folders[0].exists()
