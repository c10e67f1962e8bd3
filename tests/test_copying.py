"""`tollgate copy`: another database gets the same rows, or none that anybody takes for them."""

import asyncio
import json
import signal
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, make_url, text

from gateway.demo import seed
from gateway.services import Services
from gateway.settings import Settings
from resolvers.maintenance.copying import CopyDiffers, copy
from resolvers.maintenance.meter_check import Disagreement
from resolvers.maintenance.verify import Verified
from storage import migrations
from storage.customers import customers
from storage.engine.database import DatabaseUnavailable, Outcome
from storage.engine.transactions import Writer
from storage.maintenance import copying
from storage.tables import TABLES
from tests import commands
from tests.commands import Done
from tests.conftest import Gateway, empty_database, gateway_on
from tests.credit_walks import Walk
from tests.divided import rows_but_buckets
from tests.servers import PATIENCE_SECONDS, TOLLGATE, free_port
from tests.steps import disagreements, execute, make_meter, opened, rows_of

#: What the demo makes on any day, but the usage of each day.
DEMO = {
    "customers": 12,
    "billing_meters": 24,
    "api_keys": 1,
    "idempotency_keys": 36,
    "credit_grants": 2,
    "holds": 2,
    # Each meter was made, and two were granted credits.
    "events": 26,
    "webhook_endpoints": 0,
    "webhook_deliveries": 0,
    "auto_refills": 0,
    "auto_refill_requests": 0,
    "alerts": 0,
    "meter_alerts": 0,
}

GREATEST = 2**63 - 1


async def run(url: str, folder: Path, *arguments: str, **settings: str) -> Done:
    """Run `tollgate` on the database."""
    environment = commands.environment(TOLLGATE_DATABASE_URL=url, **settings)
    done = await asyncio.to_thread(commands.run, *arguments, folder=folder, environment=environment)
    assert "Traceback" not in done.err, done.err
    return done


async def started(url: str, folder: Path, *arguments: str, **settings: str) -> asyncio.subprocess.Process:
    """Start the installed `tollgate` on the database."""
    return await asyncio.create_subprocess_exec(
        TOLLGATE,
        *arguments,
        env=commands.environment(TOLLGATE_DATABASE_URL=url, **settings),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def demo_url(new_database_url: str, tmp_path: Path) -> str:
    """The URL of a database with the demo's data: SQLite, and PostgreSQL."""
    services = Services(Settings(database_url=new_database_url, demo_key_file=str(tmp_path / "demo.key")))
    await migrations.upgrade(services.database)
    await seed(services)
    await services.close()
    return new_database_url


@pytest.fixture(params=["sqlite", "postgresql"])
def target_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database to copy to: SQLite, and PostgreSQL."""
    (tmp_path / "target").mkdir()
    return empty_database(request.param, request, tmp_path / "target")


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    """The URL of a database to copy from, in which nothing is."""
    return f"sqlite+aiosqlite:///{tmp_path}/empty.db"


async def test_the_demo_is_copied_and_verified_alike(demo_url: str, target_url: str, tmp_path: Path) -> None:
    code, output, messages = await run(demo_url, tmp_path, "copy", "--to", target_url, "--json")
    assert (code, messages.strip()) == (0, "")
    report = json.loads(output)
    usage = report["days"]
    # What opened each meter, the grants and the holds.
    entries = usage + 24 + 2 + 2
    assert report == {
        "rows": DEMO | {"usage_days": usage, "ledger_entries": entries},
        "meters": 24,
        "entries": entries,
        "days": usage,
        "disagreements": 0,
    }
    before = await run(demo_url, tmp_path, "verify", "--json")
    after = await run(target_url, tmp_path, "verify", "--json")
    assert before.out == after.out
    assert after.json == {"meters": 24, "entries": entries, "days": usage, "disagreements": []}
    async with opened(demo_url) as source, opened(target_url) as target:
        assert await rows_of(target) == await rows_of(source)
        # It is served, and its sequences go on: the same key opens it.
        assert await migrations.is_current(target)


@pytest.mark.slow
async def test_there_and_back_again_is_the_same(
    demo_url: str, request: pytest.FixtureRequest, tmp_path: Path, dialect: str
) -> None:
    other = "postgresql" if dialect == "sqlite" else "sqlite"
    (tmp_path / "there").mkdir()
    (tmp_path / "back").mkdir()
    there = empty_database(other, request, tmp_path / "there")
    back = empty_database(dialect, request, tmp_path / "back")
    async with opened(demo_url) as first, opened(there) as second, opened(back) as third:
        assert await migrations.begin_copy(second) is False
        await copy(first, second)
        assert await migrations.begin_copy(third) is False
        await copy(second, third)
        rows = await rows_of(first)
        assert await rows_of(second) == rows
        assert await rows_of(third) == rows


#: Texts in the order of their code points, which is not that of any language.
TEXTS = ("!", "0", "Z", "a", "~", "\x7f", "\u00a0", "ß", "é", "ž", "\ud7ff", "\ue000", "\uffff", "😀", "\U0010ffff")


@pytest.mark.one_server("it adds rows without their bucket")
@pytest.mark.slow
async def test_extreme_values_arrive_as_they_are(
    own: Gateway, target_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.maintenance.copying.PORTION", 4)
    created = {
        "created_at": datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        # The driver takes the end of that day for infinity.
        "updated_at": datetime(9999, 12, 31, tzinfo=UTC),
    }

    async def fill(writer: Writer) -> None:
        for number, each in enumerate(TEXTS):
            row = {
                "id": f"cus_{each}",
                "org_id": each * 256,
                "environment": "live" if number % 2 else "sandbox",
                "email": f'{each}"\\\n@example.com',
                "name": None if number % 2 else each,
                "external_id": each if number % 3 else None,
                "metadata": {each: [None, GREATEST, -GREATEST - 1, 1e308, 0.1, "x" * 16_000, {"b": 1, "a": {}}]},
            }
            await writer.execute(insert(customers), row | created)
        # Text that JSON would write in another way is kept to the last byte.
        await writer.execute(text("UPDATE customers SET metadata = '[1.50,  1]' WHERE id = 'cus_!'"))
        meter = (
            "INSERT INTO billing_meters (id, org_id, environment, workspace_id, external_meter_id, timezone,"
            " total_credits, used_credits, allow_overages, spend_cap, limit_credits, last_seq, created_at, updated_at)"
            " SELECT id, org_id, environment, 'w', 'm', 'UTC', :most, :most, name IS NULL, :least, NULL, 0,"
            " created_at, updated_at FROM customers"
        )
        await writer.execute(text(meter), {"most": GREATEST, "least": -GREATEST - 1})
        for each in TEXTS:
            days = (
                "INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES"
                " (:id, '0001-01-01', :id, :least), (:id, '9999-12-31', :id, :most), (:id, '9999-12-31', 'a', 0)"
            )
            await writer.execute(text(days), {"id": f"cus_{each}", "most": GREATEST, "least": -GREATEST - 1})
        grant = (
            "INSERT INTO credit_grants (meter_id, seq, key, amount, priority, category, expires_at, open_credits,"
            " pinned_credits, drawn_credits, covered_credits, expired_credits, revoked_credits, is_closed, created_at,"
            " reason, metadata) SELECT id, :most, id, :most, -32768, 'paid', updated_at, :least, 0, 0, 0, 0, 0,"
            " name IS NULL, created_at, id, metadata FROM customers"
        )
        await writer.execute(text(grant), {"most": GREATEST, "least": -GREATEST - 1})
        hold = (
            "INSERT INTO holds (meter_id, seq, hold_id, amount, requested_amount, expires_in_seconds, state,"
            " committed_amount, expires_at, created_at, closed_at, pins, metadata) SELECT id, :most, id, :most, :least,"
            " -2147483648, 'open', NULL, updated_at, created_at, NULL, '[[0,  1]]', metadata FROM customers"
        )
        await writer.execute(text(hold), {"most": GREATEST, "least": -GREATEST - 1})

    await own.database.write(fill)
    async with opened(target_url) as target:
        await migrations.begin_copy(target)
        copied = await copy(own.database, target)
        assert await rows_of(target) == await rows_of(own.database)
        async with target.read() as reader:
            first = await reader.fetch(text("SELECT id, metadata FROM customers WHERE id = 'cus_!'"))
            assert [tuple(row) for row in first] == [("cus_!", "[1.50,  1]")]
            ids = await reader.fetch(text("SELECT id FROM customers ORDER BY id"))
            assert [row.id for row in ids] == [f"cus_{each}" for each in TEXTS]
    assert copied.rows == {
        "customers": len(TEXTS),
        "billing_meters": len(TEXTS),
        "api_keys": 1,
        "idempotency_keys": 0,
        "usage_days": 3 * len(TEXTS),
        "ledger_entries": 0,
        "credit_grants": len(TEXTS),
        "holds": len(TEXTS),
        "events": 0,
        "webhook_endpoints": 0,
        "webhook_deliveries": 0,
        "auto_refills": 0,
        "auto_refill_requests": 0,
        "alerts": 0,
        "meter_alerts": 0,
    }


#: Meters with grants and holds of all states, some of which are due: what is done, and the states that are seen.
CREDITS = {
    "living": (
        """meter 5; grant live 10 60s p1 promo; grant used 3 p0; use e 3; grant gone 4; revoke gone; grant ended 2 1s;
        hold committed 4; commit committed 2; hold released 1; release released; hold over 1 1s; wait 1;
        hold open 6 10s; void committed 1; update live 90s; revoke live 1""",
        """live LIVE open 2 pinned 6 drawn 1 revoked 1; used DEPLETED drawn 3; gone REVOKED revoked 4;
        ended EXPIRED expired 2; committed COMMITTED 2; released RELEASED; over EXPIRED; open OPEN""",
    ),
    "due": ("meter 5; grant a 10 1s p1; hold h 3 1s; use e 2; wait 1", "a EXPIRED drawn 2 expired 8; h EXPIRED"),
    "overdrawn": (
        "meter 0 overages; use e 9; grant covering 4; grant b 1; use f 3",
        "covering DEPLETED drawn 4; b DEPLETED drawn 1",
    ),
}


@pytest.mark.slow
async def test_grants_and_holds_of_all_states_are_copied_and_verified(own: Gateway, target_url: str) -> None:
    walks, states = [Walk(own, name=name) for name in CREDITS], []
    for walk, (steps, seen) in zip(walks, CREDITS.values(), strict=True):
        await walk.take(steps)
        states.append(" ".join(seen.split()))
        assert await walk.states() == states[-1]
    async with opened(target_url) as target:
        await migrations.begin_copy(target)
        copied = await copy(own.database, target)
        assert copied.disagreements == []
        assert (copied.rows["credit_grants"], copied.rows["holds"]) == (7, 5)
        assert copied.verified.meters == 3
        assert await rows_but_buckets(target) == await rows_but_buckets(own.database)
        assert await disagreements(target) == []
    # What is due on the copy is seen there and is booked there.
    async with gateway_on(target_url) as gateway:
        gateway.org_id, gateway.key = own.org_id, own.key
        gateway.clock.now = own.clock.now
        for walk, state in zip(walks, states, strict=True):
            there = Walk(gateway, name=walk.names["externalMeterId"])
            there.meter_id, there.ids, there.grants = walk.meter_id, walk.ids, walk.grants
            assert await there.states() == state
            assert await there.take("refill 1") == await walk.take("refill 1")
            assert await there.states() == await walk.states()
            await there.check()


@pytest.mark.slow
async def test_what_breaks_an_invariant_is_copied_and_reported(own: Gateway, target_url: str) -> None:
    day = "INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES ('mtr_gone', '2026-03-16', 'x', 1)"
    await execute(own.database, day)
    async with opened(target_url) as target:
        await migrations.begin_copy(target)
        copied = await copy(own.database, target)
        assert copied.verified == Verified(meters=0, entries=0, days=0)
        assert copied.disagreements == [
            Disagreement("mtr_gone", "usage_days has rows of it, and there is no such meter")
        ]
        assert await rows_of(target) == await rows_of(own.database)


# What refuses.


async def test_a_target_that_holds_anything_is_refused_and_left_as_it_is(
    empty_url: str, target_url: str, tmp_path: Path
) -> None:
    assert (await run(target_url, tmp_path, "migrate"))[0] == 0
    assert (await run(target_url, tmp_path, "keys", "create", "--org", "o", "--environment", "live"))[0] == 0
    async with opened(target_url) as target:
        before = await rows_of(target)
        code, output, messages = await run(empty_url, tmp_path, "copy", "--to", target_url)
        assert (code, output) == (1, "")
        assert messages.strip() == (
            "Error: The database of --to must be empty, and its table api_keys has rows. Nothing was changed."
        )
        assert await rows_of(target) == before
        assert await migrations.is_current(target)


async def test_a_target_with_tables_of_others_is_refused_and_left_as_it_is(
    empty_url: str, target_url: str, tmp_path: Path
) -> None:
    async with opened(target_url) as target:
        await execute(target, "CREATE TABLE others (id TEXT)")
        code, output, messages = await run(empty_url, tmp_path, "copy", "--to", target_url)
        assert (code, output) == (1, "")
        assert "it has a table others that is not Tollgate's" in messages
        async with target.read() as reader:
            assert await reader.fetch(text("SELECT * FROM others")) == []
            with pytest.raises(Exception, match="customers"):
                await reader.fetch(text("SELECT * FROM customers"))


async def test_a_target_of_a_later_release_is_refused(empty_url: str, target_url: str, tmp_path: Path) -> None:
    async with opened(target_url) as target:
        await migrations.upgrade(target)
        later = "UPDATE alembic_version SET version_num = 'from_the_future'"
        await execute(target, later)
        code, output, messages = await run(empty_url, tmp_path, "copy", "--to", target_url)
        assert (code, output) == (1, "")
        assert "has the schema of a later release. Nothing was changed." in messages
        async with target.read() as reader:
            versions = await reader.fetch(text("SELECT version_num FROM alembic_version"))
        assert [row.version_num for row in versions] == ["from_the_future"]


async def test_a_target_that_is_migrated_and_empty_is_filled(empty_url: str, target_url: str, tmp_path: Path) -> None:
    assert (await run(target_url, tmp_path, "migrate"))[0] == 0
    code, output, messages = await run(empty_url, tmp_path, "copy", "--to", target_url)
    assert code == 0
    assert "Both databases are equal." in messages
    assert [line.split() for line in output.splitlines()[2:]] == [[table.name, "0"] for table in TABLES]


async def test_a_wrong_url_is_reported(empty_url: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for url, code, message in (
        ("nonsense", 2, "--to must be a URL"),
        ("sqlite://", 2, "--to must name a file"),
        (empty_url, 2, "--to must name another database than TOLLGATE_DATABASE_URL."),
        ("postgresql://tollgate@127.0.0.1:1/tollgate", 1, "The database of --to is unavailable"),
    ):
        with subtests.test(url=url):
            done = await run(empty_url, tmp_path, "copy", "--to", url)
            assert done[:2] == (code, "")
            assert message in done[2]


async def test_what_the_target_cannot_hold_ends_the_copy(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source_url = empty_database("sqlite", request, tmp_path)
    target_url = empty_database("postgresql", request, tmp_path)
    assert (await run(source_url, tmp_path, "keys", "create", "--org", "o", "--environment", "live"))[0] == 0
    with sqlite3.connect(str(make_url(source_url).database)) as source:
        source.execute("UPDATE api_keys SET name = 'a' || char(0) || 'b'")
    source.close()
    code, output, messages = await run(source_url, tmp_path, "copy", "--to", target_url)
    assert (code, output) == (1, "")
    assert "Error: The database of --to cannot hold a row of api_keys: " in messages
    async with opened(source_url) as opened_source, opened(target_url) as target:
        with pytest.raises(migrations.UnfinishedCopy):
            await migrations.is_current(target)
        # Once that is repaired, it is started anew.
        repair = "UPDATE api_keys SET name = 'ab'"
        await execute(opened_source, repair)
        assert await migrations.begin_copy(target) is True
        assert (await copy(opened_source, target)).rows["api_keys"] == 1


# What goes wrong in the middle.


@pytest.mark.slow
async def test_nobody_writes_to_the_source_meanwhile(own: Gateway) -> None:
    own_url = own.database.url.render_as_string(hide_password=False)
    change = "UPDATE api_keys SET name = 'changed'"
    async with opened(own_url, wait_seconds=1) as other:
        async with own.database.standstill(copying.LOCKED) as reader:
            before = await reader.fetch(text("SELECT name FROM api_keys"))
            with pytest.raises(DatabaseUnavailable) as refused:
                await execute(other, change)
            assert refused.value.outcome is Outcome.NOT_WRITTEN
            async with other.read() as others:
                assert await others.fetch(text("SELECT name FROM api_keys")) == before
        await execute(other, change)
        async with other.read() as others:
            assert [row.name for row in await others.fetch(text("SELECT name FROM api_keys"))] == ["changed"]


class Stopped(Exception):
    """The copy is stopped by the test."""


def stop(step: str, at: int) -> Any:
    def on_progress(now: str, done: int, _of: int) -> None:
        if now == step and done >= at:
            raise Stopped

    return on_progress


@pytest.mark.slow
async def test_a_copy_that_did_not_end_is_started_anew(demo_url: str, target_url: str) -> None:
    async with opened(demo_url) as source, opened(target_url) as target:
        before = await rows_of(source)
        assert await migrations.begin_copy(target) is False
        for step, at in (("Copying", 1), ("Copying", 2_500), ("Comparing", 1), ("Verifying the copy", 0)):
            with pytest.raises(Stopped):
                await copy(source, target, on_progress=stop(step, at))
            assert await migrations.may_serve(target) is False
            assert await migrations.begin_copy(target) is True
        await copy(source, target)
        assert await rows_of(target) == before
        assert await rows_of(source) == before
        assert await migrations.may_serve(target) is True


async def test_an_unfinished_copy_is_nobodys_database(target_url: str, tmp_path: Path) -> None:
    async with opened(target_url) as target:
        await migrations.begin_copy(target)
    to = f"sqlite:///{tmp_path}/third.db"
    for arguments in (("serve",), ("migrate",), ("keys", "list"), ("verify",), ("copy", "--to", to)):
        code, output, messages = await run(target_url, tmp_path, *arguments, TOLLGATE_PORT=str(free_port()))
        assert (code, output) == (1, "")
        assert "`tollgate copy` has not finished filling the database" in messages
    assert not (tmp_path / "third.db").exists()
    # What copies to it drops what is there, and says so.
    source_url = f"sqlite:///{tmp_path}/source.db"
    code, _, messages = await run(source_url, tmp_path, "copy", "--to", target_url)
    assert code == 0
    assert "An unfinished copy was found there: it is dropped, and started anew." in messages
    assert (await run(target_url, tmp_path, "verify"))[0] == 0


async def test_a_copy_whose_process_dies_is_started_anew(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source_url = empty_database("postgresql", request, tmp_path)
    target_url = empty_database("postgresql", request, tmp_path)
    services = Services(Settings(database_url=source_url, demo_key_file=str(tmp_path / "demo.key")))
    await migrations.upgrade(services.database)
    await seed(services)
    await services.close()
    source = await asyncpg.connect(
        make_url(source_url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    target = await asyncpg.connect(
        make_url(target_url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    # It begins and then waits for the source, and later for the ledger: so it is known where it is.
    await source.execute("BEGIN; LOCK TABLE billing_meters IN ROW EXCLUSIVE MODE")
    process = await started(source_url, tmp_path, "copy", "--to", target_url)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await target.fetchval("SELECT to_regclass('ledger_entries')") is None:  # noqa: ASYNC110  # A process.
            await asyncio.sleep(0.01)
        await target.execute("BEGIN; LOCK TABLE ledger_entries IN SHARE MODE")
        await source.execute("COMMIT")
        while await target.fetchval("SELECT count(*) FROM usage_days") == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
    assert await target.fetchval("SELECT count(*) FROM ledger_entries") == 0
    marks = [row[0] for row in await target.fetch("SELECT version_num FROM alembic_version ORDER BY version_num")]
    assert len(marks) == 2
    assert marks[1] == "unfinished_copy"
    await target.execute("COMMIT")
    code, _, messages = await run(source_url, tmp_path, "copy", "--to", target_url)
    assert code == 0, messages
    assert "An unfinished copy was found there: it is dropped, and started anew." in messages
    await source.close()
    await target.close()
    async with opened(source_url) as first, opened(target_url) as second:
        assert await rows_of(second) == await rows_of(first)


@pytest.mark.slow
async def test_a_row_that_is_changed_in_the_copy_is_reported(
    request: pytest.FixtureRequest, own: Gateway, tmp_path: Path
) -> None:
    await make_meter(own, totalCredits="1")
    (tmp_path / "target").mkdir()
    target_url = empty_database("sqlite", request, tmp_path / "target")

    def tamper(step: str, done: int, of: int) -> None:
        if (step, done) == ("Copying", of):
            with sqlite3.connect(str(make_url(target_url).database)) as target:
                target.execute("UPDATE billing_meters SET external_meter_id = 'n'")
            target.close()

    async with opened(target_url) as target:
        await migrations.begin_copy(target)
        with pytest.raises(CopyDiffers, match="The rows of billing_meters differ: 1 were read"):
            await copy(own.database, target, on_progress=tamper)
        with pytest.raises(migrations.UnfinishedCopy):
            await migrations.is_current(target)
