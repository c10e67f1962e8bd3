"""Alerts as meters have taken them on: the table, its rows, and the statements that write them."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

from sqlalchemy import BigInteger, Boolean, Column, Integer, PrimaryKeyConstraint, Table, false

from storage.engine.transactions import Writer
from storage.engine.types import Instant, Name, Word, enum_type, metadata


class AlertKind(Word):
    """What an alert compares with its threshold."""

    REMAINING_BELOW = "remaining_below"
    AVAILABLE_BELOW = "available_below"
    OVERAGE_ABOVE = "overage_above"
    DAY_USAGE_ABOVE = "day_usage_above"
    GRANT_EXPIRES_WITHIN = "expires_within"


# Partitioned by the meter's id and without a foreign key to the meter, as `ledger_entries` is, for the same reasons.
meter_alerts = Table(
    "meter_alerts",
    metadata,
    Column("meter_id", Name, nullable=False),
    Column("alert_id", Name, nullable=False),
    # Another threshold is another version, and another row.
    Column("version", Integer, nullable=False),
    Column("kind", enum_type(AlertKind), nullable=False),
    Column("threshold", BigInteger, nullable=False),
    Column("usage_name", Name),
    # The meter's newest ledger entry when it was taken on: it holds for what comes after it. And when that was.
    Column("since_seq", BigInteger, nullable=False),
    Column("since_at", Instant, nullable=False),
    # Whether it triggered at once if the meter was past the threshold already.
    Column("triggers_if_past", Boolean, nullable=False, server_default=false()),
    # The meter's newest ledger entry when it was changed or deleted; null: it holds.
    Column("until_seq", BigInteger),
    Column("last_triggered_at", Instant),
    # Of one about the ends of grants: what had come near its end by then is done with.
    Column("checked_until", Instant),
    # Where it lies on a database of several machines, with all that is its meter's; 0 on any other.
    Column("bucket", Integer, nullable=False, server_default="0"),
    # Serves the alerts of a meter.
    PrimaryKeyConstraint("meter_id", "alert_id", "version"),
    postgresql_partition_by="HASH (meter_id)",
)


class MeterAlertRow(NamedTuple):
    """A version of an alert, and what a meter has taken on of it. The threshold is in credits, or in seconds."""

    meter_id: str
    alert_id: str
    version: int
    kind: AlertKind
    threshold: int
    usage_name: str | None
    since_seq: int
    since_at: datetime
    triggers_if_past: bool = False
    until_seq: int | None = None
    last_triggered_at: datetime | None = None
    checked_until: datetime | None = None


#: What changes of a row.
_CHANGING = ("until_seq", "last_triggered_at", "checked_until")
_changed = attrgetter("meter_id", "alert_id", "version", *_CHANGING)


async def insert_meter_alerts(writer: Writer, rows: Sequence[MeterAlertRow]) -> None:
    """Write what meters that the transaction has locked take on."""
    await writer.insert_rows(meter_alerts, rows)


async def update_meter_alerts(writer: Writer, rows: Sequence[MeterAlertRow]) -> None:
    """Write what has become of alerts of meters that the transaction has locked."""
    await writer.update_rows(meter_alerts, _CHANGING, list(map(_changed, rows)))
