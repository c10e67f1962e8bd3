"""What alerts, and webhooks that nobody takes, cost a debit: beside a server of the same database that has neither.

.venv/bin/python -m benchmarks.alerts [--quick] [--database sqlite|postgresql|both]
"""

from functools import partial
from statistics import median
from typing import Any

import httpx

from benchmarks import m2_record_usage
from benchmarks.arena import QUICK, Arena, Choice, Customers, Folder, Quick, Rounds, Seconds, Which, arena, in_turn, run
from benchmarks.load import Measured
from benchmarks.report import number, table
from benchmarks.run import verify
from benchmarks.scenario import METERS_A_CUSTOMER, TOLLGATE, WORKSPACE
from benchmarks.servers import Server

LOAD = m2_record_usage.SCENARIOS[0]

#: The alerts of each meter: one that debits cross now and then, and four that they do not.
ALERTS = (
    ("REMAINING_BELOW", "1000", None),
    ("AVAILABLE_BELOW", "1000", None),
    ("OVERAGE_ABOVE", "1000000", None),
    ("DAY_USAGE_ABOVE", "1000000000", "default"),
    ("GRANT_EXPIRES_WITHIN", "3600", None),
)

#: How many events wait for an endpoint that does not take them, and how many of them a request makes.
WAITING = 10_000
AT_ONCE = 100

#: Where nobody listens.
DEAD = "http://127.0.0.1:9/"

_SECRETS = {"TOLLGATE_SECRETS_KEY": "0123456789abcdef" * 4, "TOLLGATE_WEBHOOK_PRIVATE_ADDRESSES": "on"}


def main(
    quick: Quick = False,
    database: Which = Choice.BOTH,
    rounds: Rounds = 5,
    seconds: Seconds = 2.0,
    customers: Customers = 500,
    folder: Folder = None,
) -> None:
    """Measure the processor's time of a debit, of server and database, with and without."""
    if quick:
        rounds, seconds, customers = QUICK
    rows = []
    for kind in database.each:
        with (
            arena(kind, customers, folder) as at,
            at.serving(TOLLGATE, TOLLGATE, TOLLGATE, variables=_SECRETS) as servers,
        ):
            _, watched, dead = servers
            make_alerts(watched)
            make_waiting(dead, AT_ONCE if quick else WAITING, at.customers * METERS_A_CUSTOMER)
            at.measure(LOAD, watched, seconds)  # Each meter takes its alerts on with its first debit.
            rows += measure(at, servers, rounds, seconds)
            verify(servers)
    table(["database", "debits", "server us", "DB us", "both us", "x"], rows)


def measure(at: Arena, servers: list[Server], rounds: int, seconds: float) -> list[list[str]]:
    """Return the rows of a database."""
    found = in_turn(rounds, [partial(at.measure, LOAD, server, seconds) for server in servers])
    names = ("alone", f"with {len(ALERTS)} alerts a meter", f"with {WAITING:,} events for a dead endpoint")
    return [
        [
            at.kind,
            name,
            number(median(each.server_cpu / each.requests for each in measured) * 1_000_000),
            number(median(each.database_cpu / each.requests for each in measured) * 1_000_000),
            number(median(map(both, measured))),
            number(median(both(one) / both(alone) for one, alone in zip(measured, found[0], strict=True)), 2),
        ]
        for name, measured in zip(names, found, strict=True)
    ]


def both(measured: Measured) -> float:
    """Return the processor's time of a debit, of server and database, in microseconds."""
    return (measured.server_cpu + measured.database_cpu) / measured.requests * 1_000_000


def make_alerts(server: Server) -> None:
    """Have each meter of the workspace watched."""
    for kind, threshold, usage_name in ALERTS:
        values = {"workspaceId": WORKSPACE, "kind": kind, "threshold": threshold}
        values |= {} if usage_name is None else {"usageName": usage_name}
        mutation = "mutation ($input: CreateAlertInput!) { made: createAlert(input: $input) { __typename } }"
        ask(server, mutation, {"input": values}, expect={"CreateAlertSuccess"})


def make_waiting(server: Server, count: int, meters: int) -> None:
    """Make events for an endpoint that does not answer."""
    mutation = "mutation ($input: CreateWebhookEndpointInput!) { made: createWebhookEndpoint(input: $input) {"
    ask(server, f"{mutation} __typename }} }}", {"input": {"url": DEAD}}, expect={"CreateWebhookEndpointSuccess"})
    for first in range(0, count, AT_ONCE):
        changes = [
            f'm{place}: updateBillingMeter(input: {{workspaceId: "{WORKSPACE}", externalMeterId: '
            f'"meter-{place % meters}", maxOpenHolds: {1 + place}}}) {{ __typename }}'
            for place in range(first, first + AT_ONCE)
        ]
        ask(server, f"mutation {{ {' '.join(changes)} }}", {}, expect={"UpdateBillingMeterSuccess"})


def ask(server: Server, query: str, variables: dict[str, Any], *, expect: set[str]) -> None:
    """Send a mutation. Raises `RuntimeError` where not all of its fields answer what is expected."""
    headers = {"authorization": f"Bearer {server.key}"}
    url = f"http://127.0.0.1:{server.port}/graphql"
    answer = httpx.post(url, json={"query": query, "variables": variables}, headers=headers, timeout=60).json()
    if {field["__typename"] for field in (answer.get("data") or {}).values()} != expect:
        raise RuntimeError(f"It was answered: {str(answer)[:300]}")


if __name__ == "__main__":
    run(main)
