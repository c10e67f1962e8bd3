"""What Q1 and M2 cost as the tables grow: the same from ten thousand usage days to a million, or ten.

.venv/bin/python -m benchmarks.size [--quick] [--largest] [--database sqlite|postgresql|both]
"""

from contextlib import ExitStack
from functools import partial
from typing import Annotated

import typer

from benchmarks import m2_record_usage, q1_meter
from benchmarks.arena import QUICK, Choice, Folder, Quick, Rounds, Seconds, Which, arena, in_turn, run
from benchmarks.dataset import DAYS_A_CUSTOMER
from benchmarks.report import medians, number, table
from benchmarks.scenario import TOLLGATE

SCENARIOS = [q1_meter.SCENARIOS[0], m2_record_usage.SCENARIOS[0]]
USAGE_DAYS = [10_000, 100_000, 1_000_000]
LARGEST = 10_000_000


def main(
    quick: Quick = False,
    largest: Annotated[bool, typer.Option(help="Also ten million usage days: minutes to make, and gigabytes.")] = False,
    database: Which = Choice.BOTH,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    folder: Folder = None,
) -> None:
    """Measure the CPU time of Q1 and M2 by the number of usage days."""
    sizes = [*USAGE_DAYS, LARGEST] if largest else USAGE_DAYS
    if quick:
        rounds, seconds, _ = QUICK
        sizes = sizes[:2]
    rows = []
    for kind in database.each:
        with ExitStack() as stack:
            ats = [stack.enter_context(arena(kind, size // DAYS_A_CUSTOMER, folder)) for size in sizes]
            servers = [stack.enter_context(at.serving(TOLLGATE))[0] for at in ats]
            for scenario in SCENARIOS:
                turns = [
                    partial(at.measure, scenario, server, seconds) for at, server in zip(ats, servers, strict=True)
                ]
                results = [medians(kind, scenario, TOLLGATE, measured) for measured in in_turn(rounds, turns)]
                rows += [
                    [
                        *(kind, scenario.name, f"{at.customers * DAYS_A_CUSTOMER:,}", number(result.server_us)),
                        *(number(result.database_us), number(result.both_us / results[0].both_us, 2)),
                    ]
                    for at, result in zip(ats, results, strict=True)
                ]
    table(["database", "scenario", "usage days", "server us", "DB us", "both, x the smallest"], rows)


if __name__ == "__main__":
    run(main)
