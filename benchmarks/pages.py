"""What a page deep in a list costs beside the first one: ten customers by a cursor.

.venv/bin/python -m benchmarks.pages [--quick] [--database sqlite|postgresql|both]
"""

from functools import partial

import orjson

from benchmarks import answers
from benchmarks.arena import (
    CUSTOMERS,
    QUICK,
    Arena,
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
from benchmarks.scenario import TOLLGATE, Form, Scenario
from benchmarks.servers import Server

#: How many customers a page has, and which page is the deep one; where there are fewer, it is the last.
FIRST = 10
DEEP = 1_000

#: How many customers are passed at once on the way there.
STEP = 100

QUERY = """
query Customers($first: Int!, $after: String) {
  customers(first: $first, after: $after) {
    nodes { id email name externalId createdAt } pageInfo { endCursor hasNextPage }
  }
}
"""


def main(
    quick: Quick = False,
    database: Which = Choice.BOTH,
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    customers: Customers = CUSTOMERS,
    folder: Folder = None,
) -> None:
    """Measure the first page and a deep one."""
    if quick:
        rounds, seconds, customers = QUICK
    rows = []
    for kind in database.each:
        with arena(kind, customers, folder) as at, at.serving(TOLLGATE) as [server]:
            last = min(DEEP, customers // FIRST)
            pages = {1: page(FIRST, None), last: page(FIRST, cursor(at, server, (last - 1) * FIRST))}
            turns = [partial(at.measure, scenario, server, seconds) for scenario in pages.values()]
            results = [medians(kind, page(FIRST, None), TOLLGATE, measured) for measured in in_turn(rounds, turns)]
            rows += [
                [
                    *(kind, f"{place:,}", number(result.server_us), number(result.database_us)),
                    *(number(result.both_us / results[0].both_us, 2), number(result.p50_ms, 1)),
                    number(result.p99_ms, 1),
                ]
                for place, result in zip(pages, results, strict=True)
            ]
    table(["database", "page", "server us", "DB us", "both, x page 1", "p50 ms", "p99 ms"], rows)


def page(first: int, after: str | None) -> Scenario:
    """Return the scenario that asks for the page after the cursor."""
    return Scenario(
        name="a page of customers, 16 clients",
        forms={TOLLGATE: Form.graphql(QUERY, '"customers":{"nodes":[{')},
        clients=16,
        item=orjson.dumps({"first": first, "after": after}).decode(),
    )


def cursor(at: Arena, server: Server, count: int) -> str | None:
    """Return the cursor that stands after so many customers."""
    after = None
    while count:
        step = min(STEP, count)
        found = answers.ask(at.load(page(step, after), server, 0))
        after = found["data"]["customers"]["pageInfo"]["endCursor"]
        count -= step
    return after


if __name__ == "__main__":
    run(main)
