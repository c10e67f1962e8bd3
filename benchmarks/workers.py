"""What a second process serves: `tollgate serve --workers 2` beside one. Neither is pinned to a core.

.venv/bin/python -m benchmarks.workers [--quick] [--database sqlite|postgresql|both]
"""

from contextlib import ExitStack
from functools import partial

from benchmarks.arena import (
    CUSTOMERS,
    QUICK,
    Choice,
    Customers,
    Folder,
    Quick,
    Rounds,
    Seconds,
    Which,
    arena,
    in_turn,
    run,
)
from benchmarks.report import medians, number, table
from benchmarks.run import SCENARIOS
from benchmarks.scenario import TOLLGATE

WORKERS = (1, 2)


def main(
    quick: Quick = False,
    database: Which = Choice.BOTH,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    customers: Customers = CUSTOMERS,
    folder: Folder = None,
) -> None:
    """Measure one and two workers: the queries on SQLite, all scenarios on PostgreSQL."""
    if quick:
        rounds, seconds, customers = QUICK
    rows = []
    for kind in database.each:
        # SQLite has one writer at a time, whatever the number of processes.
        scenarios = [each for each in SCENARIOS if each.is_query or kind is Choice.POSTGRESQL]
        with arena(kind, customers, folder) as at, ExitStack() as stack:
            servers = [stack.enter_context(at.serving(TOLLGATE, workers=workers, pin=False))[0] for workers in WORKERS]
            for scenario in scenarios:
                turns = [partial(at.measure, scenario, server, seconds) for server in servers]
                results = [medians(kind, scenario, TOLLGATE, measured) for measured in in_turn(rounds, turns)]
                rows += [
                    [
                        *(kind, scenario.name, str(workers), number(result.a_second)),
                        *(number(result.a_second / results[0].a_second, 2), number(result.p50_ms, 1)),
                        *(number(result.p99_ms, 1), number(result.server_us), number(result.database_us)),
                        number(result.server_mib),
                    ]
                    for workers, result in zip(WORKERS, results, strict=True)
                ]
    columns = ["database", "scenario", "workers", "a second", "x one", "p50 ms", "p99 ms", "server us", "DB us", "MiB"]
    table(columns, rows)


if __name__ == "__main__":
    run(main)
