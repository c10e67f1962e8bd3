"""A database that is divided into buckets: each meter lies in its own, with all that is of it.

Here all of them lie on one server, or in one file: what is tested is that nothing is looked for in another one.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select

from resolvers.meters.record_usage import RecordUsage
from resolvers.meters.writing.lanes import Submission
from resolvers.meters.writing.writer import MeterWriter
from resolvers.reading.places import locate
from storage import ids
from storage.engine.buckets import Buckets, bits_of
from storage.engine.database import Database, DatabaseUnavailable, Outcome
from storage.engine.transactions import Writer
from storage.meters import ledger
from storage.meters.billing_meters import MeterName
from storage.meters.ledger import LedgerEntryKind, LedgerKey, OverLimitPolicy
from storage.meters.webhook_deliveries import webhook_deliveries
from storage.tables import owner_column
from storage.tenants import Environment
from tests.conftest import Gateway, on_postgresql
from tests.divided import ALL_OF_A_METER, OF_METERS, bucket_of, fill, one_of_each
from tests.steps import disagreements, execute, make_customer, make_meter, usage_event

pytestmark = [pytest.mark.one_server("it divides a database of one server by itself"), pytest.mark.slow]

#: The values are in no order, as the database gives them.
FOUR = Buckets((0, 5, 2, 9))


@pytest.fixture
def divided(own: Gateway) -> Gateway:
    """The gateway on a database of its own in four buckets."""
    own.database.divide(FOUR)
    return own


class TestBits:
    def test_they_are_the_first_twelve_of_the_sha_256_of_the_names(self) -> None:
        # printf 'org\0live\0w\0m' | sha256sum
        assert bits_of(MeterName("org", Environment.LIVE, "w", "m")) == 0x5E8

    def test_a_meters_number_among_the_buckets_is_that_of_its_first_bits(self) -> None:
        assert [FOUR.of_bits(bits) for bits in (0, 0x3FF, 0x400, 0x7FF, 0x800, 0xC00, 0xFFF)] == [0, 0, 5, 5, 2, 9, 9]

    def test_one_bucket_has_all_meters(self) -> None:
        assert [Buckets().of_bits(bits) for bits in (0, 0xFFF, None)] == [0, 0, 0]

    def test_an_id_says_them_unless_it_is_from_before_ids_did(self) -> None:
        assert ids.bits_of_meter(ids.new_meter_id(0x5E8)) == 0x5E8
        assert ids.bits_of_meter(ids.new_meter_id(0)) == 0
        assert ids.bits_of_meter("mtr_" + 24 * "0") is None

    @pytest.mark.parametrize("digits", [23, 25, 26, 28])
    def test_no_other_number_of_digits_is_an_id(self, digits: int) -> None:
        assert not ids.is_id("mtr_" + digits * "0", ids.BILLING_METER)
        assert ids.parse_numbered_id(f"ent_{digits * '0'}_1", ids.LEDGER_ENTRY) is None


@pytest.mark.slow
async def test_whatever_is_written_of_a_meter_lies_in_its_bucket(divided: Gateway) -> None:
    for name in one_of_each(divided):
        meter_id, bucket = await fill(divided, name), bucket_of(divided, name)
        async with divided.database.read() as reader:
            for table in OF_METERS:
                if table is webhook_deliveries:
                    continue  # There is no endpoint.
                found = await reader.fetch(select(table.c.bucket).where(owner_column(table) == meter_id).distinct())
                assert [row.bucket for row in found] == [bucket], table.name
    assert await disagreements(divided.database, now=divided.clock()) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [37, 1_000])
async def test_any_number_of_rows_is_added_to_a_bucket(divided: Gateway, count: int) -> None:
    for name in one_of_each(divided):
        meter_id = await make_meter(divided, name, totalCredits="9000000")
        for batch in range(2):
            items = [
                {"workspaceId": "w", "externalMeterId": name, "eventId": f"{batch}-{number}", "amount": str(number)}
                for number in range(1, count + 1)
            ]
            query = "mutation ($input: [RecordUsageInput!]!) { recordUsageBatch(input: $input) { __typename } }"
            results = (await divided.data(query, {"input": items}))["recordUsageBatch"]
            assert results == [{"__typename": "RecordUsageSuccess"}] * count
        async with divided.database.read(bucket_of(divided, name)) as reader:
            (entries,) = await ledger.by_ranges(reader, [(meter_id, 2, 2 * count + 1)])
        amounts = [(entry.key, entry.amount) for entry in reversed(entries)]
        assert amounts == [(f"{batch}-{number}", number) for batch in range(2) for number in range(1, count + 1)]
    assert await disagreements(divided.database, now=divided.clock()) == []


@pytest.mark.slow
async def test_all_is_found_by_names_and_by_ids_as_in_one_bucket(own: Gateway) -> None:
    customer_id = await make_customer(own)
    own.database.divide(FOUR)
    names = one_of_each(own)

    async def answers() -> list[Any]:
        """Return all that is asked, without the ids that differ between meters of another name."""
        meter_ids = [await fill(own, name, customerId=customer_id) for name in names]
        named = " ".join(
            f'n{place}: billingMeter(workspaceId: "w", externalMeterId: "{name}") {ALL_OF_A_METER}'
            for place, name in enumerate(names)
        )
        by_name = await own.data(f"{{ {named} }}")
        entries = [node["id"] for meter in by_name.values() for node in meter["ledger"]["nodes"]]
        nodes = "query ($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"
        assert [node["id"] for node in (await own.data(nodes, {"ids": meter_ids + entries}))["nodes"]] == [
            *meter_ids,
            *entries,
        ]
        billed = f'{{ customer(id: "{customer_id}") {{ billingMeters(first: 9) {{ nodes {ALL_OF_A_METER} }} }} }}'
        of_customer = (await own.data(billed))["customer"]["billingMeters"]["nodes"]
        assert sorted(meter["id"] for meter in of_customer) == sorted(meter_ids)
        assert {meter["id"]: meter for meter in of_customer} == {meter["id"]: meter for meter in by_name.values()}
        listed = f"{{ billingMeters(first: 9) {{ nodes {ALL_OF_A_METER} }} }}"
        assert (await own.data(listed))["billingMeters"]["nodes"] == of_customer
        # What is due and not yet written is shown, too.
        own.clock.forward(days=2)
        late = await own.data(f"{{ {named} }}")
        assert (await own.data(listed))["billingMeters"]["nodes"] == [
            *({meter["id"]: meter for meter in late.values()}[meter["id"]] for meter in of_customer)
        ]
        own.clock.forward(days=-2)
        return [_without_ids(answer) for meters in (by_name, late) for answer in meters.values()]

    own.database.divide(Buckets())
    in_one = await answers()
    for table in OF_METERS:
        await execute(own.database, f"DELETE FROM {table.name}")  # noqa: S608  # Our own names.
    own.database.divide(FOUR)
    assert await answers() == in_one
    assert len(in_one) == 8


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_ids(each) for name, each in value.items() if name != "id"}
    return [*map(_without_ids, value)] if isinstance(value, list) else value


async def test_a_batch_over_all_buckets_is_answered_in_its_order(divided: Gateway) -> None:
    names = one_of_each(divided)
    for name in names:
        await make_meter(divided, name, totalCredits="10")
    query = """mutation ($input: [RecordUsageInput!]!) { recordUsageBatch(input: $input) {
      __typename ... on RecordUsageSuccess { billingMeter { externalMeterId usedCredits } entry { key } }
      ... on InsufficientCredits { billingMeter { externalMeterId } } } }"""
    items = [
        {"workspaceId": "w", "externalMeterId": name, "eventId": f"{round_}", "amount": "4"}
        for round_ in range(3)
        for name in names
    ]
    results = (await divided.data(query, {"input": items}))["recordUsageBatch"]
    taken = [
        {
            "__typename": "RecordUsageSuccess",
            "billingMeter": {"externalMeterId": name, "usedCredits": "8"},
            "entry": {"key": f"{round_}"},
        }
        for round_ in range(2)
        for name in names
    ]
    refused = [{"__typename": "InsufficientCredits", "billingMeter": {"externalMeterId": name}} for name in names]
    assert results == taken + refused


class TestSomeOfABatch:
    """Of a batch over several buckets each part is a transaction of its own."""

    @pytest.fixture
    def lost(self, monkeypatch: pytest.MonkeyPatch) -> dict[int, Outcome]:
        """By bucket what becomes of a write to it, if anything does."""
        outcomes: dict[int, Outcome] = {}
        write = Database.write

        async def write_or_lose(self: Database, *args: Any, bucket: int = 0, **options: Any) -> Any:
            if bucket in outcomes:
                raise DatabaseUnavailable(outcomes[bucket])
            return await write(self, *args, bucket=bucket, **options)

        monkeypatch.setattr(Database, "write", write_or_lose)
        return outcomes

    async def submitted(self, gateway: Gateway, names: list[str]) -> Any:
        """Debit each meter once, and return the results, or the outcome that the caller is answered."""
        key_id = "key_" + 24 * "0"
        commands = [
            RecordUsage(
                MeterName(gateway.org_id, Environment.SANDBOX, "w", name),
                "e",
                1,
                "u",
                None,
                OverLimitPolicy.REJECT,
                {},
                key_id,
                may_backfill=False,
            )
            for name in names
        ]
        results = await asyncio.gather(gateway.services.meter_writer.submit(commands), return_exceptions=True)
        return getattr(results[0], "outcome", results[0])

    async def test_what_is_written_in_part_is_unknown_and_repeated_is_whole(
        self, divided: Gateway, lost: dict[int, Outcome]
    ) -> None:
        names = one_of_each(divided)
        for name in names:
            await make_meter(divided, name, totalCredits="10")
        lost[5] = Outcome.NOT_WRITTEN
        assert await self.submitted(divided, names) is Outcome.UNKNOWN
        lost.clear()
        repeated = await self.submitted(divided, names)
        assert [result.replayed for result in repeated] == [True, False, True, True]
        assert [result.billing_meter.used_credits for result in repeated] == [1, 1, 1, 1]

    async def test_where_nothing_is_written_that_is_said(self, divided: Gateway, lost: dict[int, Outcome]) -> None:
        names = one_of_each(divided)
        for name in names:
            await make_meter(divided, name, totalCredits="10")
        lost |= dict.fromkeys(FOUR.values, Outcome.NOT_WRITTEN)
        assert await self.submitted(divided, names) is Outcome.NOT_WRITTEN
        lost[9] = Outcome.UNKNOWN
        assert await self.submitted(divided, names) is Outcome.UNKNOWN
        lost.clear()
        assert [result.replayed for result in await self.submitted(divided, names)] == [False] * 4


async def test_a_meter_whose_id_does_not_say_where_it_lies_is_found_by_it(divided: Gateway) -> None:
    name = one_of_each(divided)[3]
    meter_id = await fill(divided, name)
    old_id = meter_id[:-3]
    for table in OF_METERS:
        column = owner_column(table).name
        statement = f"UPDATE {table.name} SET {column} = :new WHERE {column} = :old"  # noqa: S608  # Our own names.
        await execute(divided.database, statement, new=old_id, old=meter_id)
    assert await locate(divided.database, [old_id, ids.new_meter_id(0x400), "mtr_" + 24 * "f"]) == [9, 5, 0]
    query = f"query ($id: ID!) {{ node(id: $id) {{ ... on BillingMeter {ALL_OF_A_METER} }} }}"
    found = (await divided.data(query, {"id": old_id}))["node"]
    assert (found["id"], found["usedCredits"], len(found["ledger"]["nodes"])) == (old_id, "104", 12)


@pytest.mark.slow
async def test_verify_finds_what_lies_in_another_bucket(divided: Gateway) -> None:
    first, second, third, fourth = one_of_each(divided)
    meter_ids = {name: await fill(divided, name) for name in (first, second, third, fourth)}
    await execute(divided.database, "UPDATE usage_days SET bucket = 2 WHERE meter_id = :id", id=meter_ids[first])
    for name, bucket in ((third, 5), (fourth, 7)):
        for table in OF_METERS:
            column = owner_column(table).name
            statement = f"UPDATE {table.name} SET bucket = :to WHERE {column} = :id"  # noqa: S608  # Our own names.
            await execute(divided.database, statement, to=bucket, id=meter_ids[name])
    elsewhere = "it lies in another bucket than that of its names, where it is looked for"
    found = {(each.id, each.message) for each in await disagreements(divided.database)}
    assert {(meter_ids[third], elsewhere), (meter_ids[fourth], elsewhere)} <= found
    assert (meter_ids[first], "usage_days has rows of it, and there is no such meter") in found
    assert {id_ for id_, _ in found} == {meter_ids[first], meter_ids[third], meter_ids[fourth]}


@pytest.mark.parametrize(("servers", "at_once"), [(("a", "a", "a", "a"), 1), (("a", "b", "a", "b"), 2)])
async def test_a_server_has_one_group_under_way_and_the_others_gather_more(
    own: Gateway, monkeypatch: pytest.MonkeyPatch, servers: tuple[str, ...], at_once: int
) -> None:
    own.database.divide(FOUR)
    names = one_of_each(own)
    for name in names:
        await make_meter(own, name, totalCredits="100")
    # It says only which groups are of one server: all are asked of the one that there is.
    places = {bucket: (server, 1) for bucket, server in zip(FOUR.values, servers, strict=True)}
    monkeypatch.setattr(own.database.buckets, "places", places)
    decide, running, sizes = MeterWriter._decide, [0, 0], []

    async def counted(self: MeterWriter, submissions: Sequence[Submission], **options: Any) -> list[Submission]:
        running[0] += 1
        running[1] = max(running)
        sizes.append(len(submissions))
        try:
            return await decide(self, submissions, **options)
        finally:
            running[0] -= 1

    monkeypatch.setattr(MeterWriter, "_decide", counted)
    events = [usage_event(own, f"e{number}", 1, external_meter_id=name) for number in range(5) for name in names]
    await asyncio.gather(*[own.services.meter_writer.submit([event]) for event in events])
    assert running[1] == at_once
    assert sizes == [5] * 4


@pytest.mark.slow
async def test_a_group_that_does_not_end_keeps_the_other_buckets_of_its_server_back_for_a_moment_only(
    divided: Gateway,
) -> None:
    writer = divided.services.meter_writer
    name, *_ = one_of_each(divided)
    await make_meter(divided, name, totalCredits="100")
    async with asyncio.timeout(5), writer._crossings[None].passed():
        await writer.submit([usage_event(divided, "e", 1, external_meter_id=name)])


@on_postgresql
async def test_a_group_is_added_by_few_statements_of_few_texts(divided: Gateway) -> None:
    name = next(name for name in one_of_each(divided) if bucket_of(divided, name))
    await make_meter(divided, name, totalCredits="1000")
    added: list[int] = []
    divided.database.listen(
        begun=lambda *given: added.append(given[2].count("), (") + 1) if "INTO ledger" in given[2] else None,
        done=lambda *_: None,
    )
    for size in (1, 3, 7, 31, 130):
        await divided.services.meter_writer.submit(
            [usage_event(divided, f"{size}-{number}", 1, external_meter_id=name) for number in range(size)]
        )
    assert added == [1, 3, 6, 1, 24, 6, 1, 128, 2]


@on_postgresql
async def test_the_keys_of_one_meter_are_looked_up_one_by_one_however_many_entries_it_has(divided: Gateway) -> None:
    name = next(name for name in one_of_each(divided) if bucket_of(divided, name))
    meter_id = await make_meter(divided, name)
    wanted = [LedgerKey(meter_id, LedgerEntryKind.USAGE, f"e{number}") for number in range(32)]

    async def conditions(writer: Writer) -> list[str]:
        run = writer._connection.exec_driver_sql
        # The other meters have two entries each, and PostgreSQL knows nothing of this one's.
        await run(
            "INSERT INTO ledger_entries (bucket, meter_id, seq, kind, key, amount, total_credits_after,"
            " used_credits_after, recorded_at, recorded_by, metadata)"
            " SELECT 1, 'm' || number / 2, number, 'usage', 'e' || number, 1, 1, 1, now(), 'r', '{}'"
            " FROM generate_series(1, 20000) AS number"
        )
        await run("ANALYZE ledger_entries")
        # The plan that is kept after some runs.
        await run("SET LOCAL plan_cache_mode = force_generic_plan")
        await ledger.by_keys(writer, wanted)
        found = await run(
            "SELECT name, cardinality(parameter_types) FROM pg_prepared_statements"
            " WHERE statement LIKE 'SELECT ledger_entries.%%' AND cardinality(parameter_types) > 32"
        )
        prepared, count = tuple[Any, ...](found.one())
        rows = await run(f"EXPLAIN EXECUTE {prepared} ({', '.join(['1'] * count)})")
        return [row[0].strip() for row in rows if "Index Cond: " in row[0]]

    found = await divided.database.write(conditions, bucket=bucket_of(divided, name))
    assert found
    assert all("meter_id" in condition and "key" in condition for condition in found), found
