"""What is measured: the figures of `/metrics`, with their names, labels and bounds."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_EVENTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_000.0)


class Figure(NamedTuple):
    """A figure: its kind, its name, what it measures, and its labels.

    A `counter` only grows; a `gauge` is of the moment. A `histogram` counts how often a quantity was at most each of
    the bounds; its last two values are the rest and the sum.
    """

    kind: str
    name: str
    what: str
    labels: Sequence[str] = ()
    bounds: Sequence[float] = ()

    def zero(self) -> list[float]:
        """Return its values before anything happened."""
        return [0.0] * (len(self.bounds) + 2 if self.kind == "histogram" else 1)

    def family(self, values: "Values") -> Metric:
        """Return it as the library writes it."""
        sorted_values = sorted(values.items())
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.what, labels=self.labels)
            for labels, (*counts, total) in sorted_values:
                bounds = (*map(str, self.bounds), "+Inf")
                histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
            return histogram
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name, self.what, labels=self.labels)
        for labels, (value,) in sorted_values:
            family.add_metric(labels, value)
        return family


#: What a figure is, by the values of its labels.
Values = dict[tuple[str, ...], list[float]]

REQUESTS = Figure("counter", "tollgate_requests", "Requests that were answered.", labels=("operation", "outcome"))
BUGS = Figure("counter", "tollgate_bugs", "Requests whose outcome is INTERNAL_SERVER_ERROR.")
LATENCY = Figure(
    "histogram", "tollgate_request_duration_seconds", "How long requests took.", ("operation",), bounds=_SECONDS
)
REFUSALS = Figure("counter", "tollgate_refusals", "What the server refused by itself, by its reason.", ("reason",))
IN_FLIGHT = Figure("gauge", "tollgate_requests_in_flight", "Requests that are being answered, /metrics aside.")
STATEMENTS = Figure("counter", "tollgate_sql_statements", "SQL statements, those of transactions aside.")
CONNECTIONS = Figure("gauge", "tollgate_database_connections_in_use", "Database connections in use.", ("use",))
AWAITED = Figure("gauge", "tollgate_database_connections_awaited", "Uses that wait for a connection.", ("use",))
MAX_CONNECTIONS = Figure("gauge", "tollgate_database_connections_max", "Connections that may be open.", ("use",))
GROUPS = Figure("histogram", "tollgate_usage_group_events", "Usage events a transaction.", bounds=_EVENTS)
GROUP_SECONDS = Figure(
    "histogram", "tollgate_usage_group_duration_seconds", "How long such a transaction took.", bounds=_SECONDS
)
WAITS = Figure("histogram", "tollgate_usage_wait_seconds", "How long requests waited for it to begin.", bounds=_SECONDS)
WAITING = Figure("gauge", "tollgate_usage_waiting_events", "Usage events that wait for their transaction to begin.")
EVENTS = Figure("counter", "tollgate_usage_events", "Usage events, by what became of them.", ("result",))
CREDITS = Figure("counter", "tollgate_usage_credits", "Credits that usage events asked for.", ("result",))
CREDIT_ENTRIES = Figure(
    "counter", "tollgate_credit_entries", "Ledger entries of grants and holds that were written.", ("kind",)
)
CREDIT_AMOUNTS = Figure("counter", "tollgate_credit_entry_credits", "The credits of these entries.", ("kind",))
OVERDUE = Figure("gauge", "tollgate_overdue_meters", "Meters with a grant or hold whose end is long due to be written.")
WEBHOOKS = Figure(
    "counter", "tollgate_webhook_attempts", "Attempts to deliver webhooks, by what became of deliveries.", ("result",)
)
PENDING_WEBHOOKS = Figure("gauge", "tollgate_webhook_pending_deliveries", "Webhook deliveries that are pending.")
OLDEST_WEBHOOK = Figure(
    "gauge", "tollgate_webhook_oldest_pending_seconds", "How long the oldest of them has been pending."
)

FIGURES = (
    REQUESTS,
    BUGS,
    LATENCY,
    REFUSALS,
    IN_FLIGHT,
    STATEMENTS,
    CONNECTIONS,
    AWAITED,
    MAX_CONNECTIONS,
    GROUPS,
    GROUP_SECONDS,
    WAITS,
    WAITING,
    EVENTS,
    CREDITS,
    CREDIT_ENTRIES,
    CREDIT_AMOUNTS,
    OVERDUE,
    WEBHOOKS,
    PENDING_WEBHOOKS,
    OLDEST_WEBHOOK,
)
