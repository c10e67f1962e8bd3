"""What each operation costs on a database that is divided over several servers, beside one PostgreSQL.

.venv/bin/python -m benchmarks.division [--quick] [--buckets 4] [--only TEXT] [--json FILE]

TOLLGATE_TEST_CITUS_URL names the coordinator, as for the tests: all servers must run on this machine, whose processes'
CPU times are added up. The one PostgreSQL is an undivided database of the coordinator's server, so that both are of one
version, and both are measured in turn, in every round.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import orjson
import typer

from benchmarks.arena import QUICK, Choice, Customers, Folder, Loads, Quick, Rounds, Seconds, err, in_turn, run
from benchmarks.dataset import fill
from benchmarks.load import Measured, cpu_seconds
from benchmarks.report import number, table
from benchmarks.run import SCENARIOS
from benchmarks.scenario import METERS_A_CUSTOMER, ORG, TOLLGATE, WORKSPACE
from benchmarks.servers import serving
from gateway.services import Services
from gateway.settings import Settings
from resolvers.meters.record_usage import RecordUsage
from storage.engine.database import Database
from storage.maintenance.distribution import distribute
from storage.meters.billing_meters import MeterName
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment
from tests.citus import cluster

#: The numbers of debits that are written together, and how many debits are written in a round.
GROUPS = {1: 1_000, 8: 4_000, 64: 9_600}

_METER = MeterName(ORG, Environment.LIVE, WORKSPACE, "")
_EVENT = RecordUsage(
    _METER,
    "",
    1,
    "tokens",
    occurred_at=None,
    policy=OverLimitPolicy.REJECT,
    metadata={},
    recorded_by=ORG,
    may_backfill=False,
)

#: How often each size of group is measured, in turn.
GROUP_ROUNDS = 6


async def _processes() -> list[int]:
    """Return the process of each server, which all run on this machine, the coordinator's first."""
    found = []
    for host, port in await cluster.machines():
        connection = await cluster.connected(host, port, "postgres")
        found.append(_parent_of(await connection.fetchval("SELECT pg_backend_pid()")))
        await connection.close()
    return found


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


@contextmanager
def databases(customers: int, buckets: int) -> Iterator[tuple[str, str, str]]:
    """Make an undivided and a divided database of the same rows; give their URLs and a key of both."""
    urls: list[str] = []
    try:
        urls.append(asyncio.run(cluster.new_database()))
        err.print(f"{customers:,} customers are made")
        key = asyncio.run(fill(urls[0], customers))
        urls.append(asyncio.run(cluster.new_database(cluster.name_of(urls[0]))))
        err.print(f"one of two databases is divided into {buckets} buckets")
        asyncio.run(_divide(urls[1], buckets))
        yield urls[0], urls[1], key
    finally:
        for url in urls:
            asyncio.run(cluster.drop_database(url))


async def _divide(url: str, buckets: int) -> None:
    database = Database(url, wait_seconds=600)
    try:
        await distribute(database, buckets)
    finally:
        await database.close()
    for host, port in await cluster.machines():
        connection = await cluster.connected(host, port, cluster.name_of(url))
        await connection.execute("VACUUM (FREEZE, ANALYZE)")
        await connection.close()


def main(
    quick: Quick = False,
    buckets: Annotated[int, typer.Option(help="Into how many buckets the divided database is divided.")] = 4,
    only: Annotated[list[str] | None, typer.Option(help="Scenarios whose name has this; may be repeated.")] = None,
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    customers: Customers = 4_000,
    folder: Folder = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results there.")] = None,
) -> None:
    """Measure a divided database beside one PostgreSQL."""
    if quick:
        rounds, seconds, customers = QUICK
    scenarios = [each for each in SCENARIOS if not only or any(part in each.name for part in only)]
    pids = asyncio.run(_processes())
    rows: list[list[str]] = []
    with TemporaryDirectory(dir=folder) as name, databases(customers, buckets) as (one, divided, key):
        if not only or any(part in "groups" for part in only):
            rows += asyncio.run(groups(pids, one, divided, customers, quick=quick))
        at = Loads(Choice.POSTGRESQL, pids, key, customers)
        for scenario in scenarios:
            # Those of one scenario at a time: by itself, each asks its database something every two seconds.
            with (
                serving(TOLLGATE, one, key, Path(name)) as of_one,
                serving(TOLLGATE, divided, key, Path(name)) as of_divided,
            ):
                turns = [partial(at.measure, scenario, server, seconds) for server in (of_one, of_divided)]
                measured = in_turn(rounds, turns)
            rows.append(_row(scenario.name, *[[costs(each, scenario.items) for each in found] for found in measured]))
    table(["what", "gateway us", "x one", "databases us", "x one", "coordinator"], rows)
    if json is not None:
        json.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))


@dataclass(frozen=True)
class Cost:
    """The microseconds of CPU time that one request, or one event, took."""

    gateway: float
    databases: list[float]


def costs(measured: Measured, items: int) -> Cost:
    """Return what each took."""
    count = measured.requests * items / 1e6
    return Cost(measured.server_cpu / count, [each / count for each in measured.database_cpus])


def _row(what: str, one: list[Cost], divided: list[Cost]) -> list[str]:
    """Return the line of the least costs of the rounds: what else a machine does only adds to them."""
    gateways = [min(each.gateway for each in found) for found in (one, divided)]
    least = [min((each.databases for each in found), key=sum) for found in (one, divided)]
    databases = list(map(sum, least))
    return [
        *(what, " -> ".join(map(number, gateways)), number(gateways[1] / gateways[0], 2) if gateways[0] else ""),
        *(" -> ".join(map(number, databases)), number(databases[1] / databases[0], 2)),
        f"{least[1][0] / databases[1]:.1%}",
    ]


async def groups(pids: Sequence[int], one: str, divided: str, customers: int, *, quick: bool) -> list[list[str]]:
    """Write groups of exactly so many debits of meters of one bucket, by the meter writer."""
    rows = []
    of_one, of_divided = (Services(Settings(database_url=url)) for url in (one, divided))
    numbers = itertools.count()
    try:
        await of_divided.database.find_buckets()
        buckets = of_divided.database.buckets
        names = [_METER._replace(external_meter_id=f"meter-{place}") for place in range(customers * METERS_A_CUSTOMER)]
        meters = itertools.cycle([name for name in names if buckets.of_names(name) == buckets.values[0]])

        async def write(services: Services, size: int, count: int) -> Cost:
            before = list(map(cpu_seconds, pids))
            for _ in range(count // size):
                events = [_EVENT._replace(meter=next(meters), event_id=f"group-{next(numbers)}") for _ in range(size)]
                await services.meter_writer.submit(events)
            after = map(cpu_seconds, pids)
            return Cost(0, [(end - begun) * 1e6 / count for begun, end in zip(before, after, strict=True)])

        for size, count in GROUPS.items():
            found: list[list[Cost]] = [[], []]
            for round_ in range(2 if quick else GROUP_ROUNDS + 1):
                for place, services in enumerate((of_one, of_divided)):
                    cost = await write(services, size, count // 20 if quick else count)
                    if round_:  # The first one only warms it up.
                        found[place].append(cost)
            rows.append(_row(f"debits, {size} at once", *found))
    finally:
        await of_one.close()
        await of_divided.close()
    return rows


if __name__ == "__main__":
    run(main)
