"""Alerts: the rules of what callers are to be notified of, the table, and the statements that read and write it.

Those that a meter has taken on are in `storage/meters/meter_alerts.py`, where their kinds are, too.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    Select,
    Table,
    Text,
    false,
    func,
    insert,
    select,
    text,
    union_all,
    update,
)

from storage.engine.pages import Page, page_statement, unindexed
from storage.engine.statements import Lookup
from storage.engine.transactions import Reader, Writer
from storage.engine.types import Instant, Name, enum_type, metadata
from storage.meters.billing_meters import MeterName
from storage.meters.meter_alerts import AlertKind, MeterAlertRow, meter_alerts
from storage.tenants import Environment

_OF_WORKSPACE = text("meter_id IS NULL")
_OF_METER = text("meter_id IS NOT NULL")

alerts = Table(
    "alerts",
    metadata,
    Column("id", Name, primary_key=True),
    Column("org_id", Name, nullable=False),
    Column("environment", enum_type(Environment), nullable=False),
    Column("workspace_id", Name, nullable=False),
    # The one meter that it is about; both are null where it is about each meter of the workspace.
    Column("external_meter_id", Name),
    Column("meter_id", Name),
    Column("kind", enum_type(AlertKind), nullable=False),
    Column("threshold", BigInteger, nullable=False),
    Column("usage_name", Name),
    Column("name", Text),
    Column("version", Integer, nullable=False),
    # It stays, because events name it.
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
    Column("created_at", Instant, nullable=False),
    # Serves the list of alerts, newest first.
    Index(None, "org_id", "environment", "id"),
    # Serves those of a workspace, newest first, and those of some of its meters.
    Index(None, "org_id", "environment", "workspace_id", "id"),
    Index("alerts_meter_id_idx", "meter_id", sqlite_where=_OF_METER, postgresql_where=_OF_METER),
    # Serves the alerts of workspaces that gateways keep in memory.
    Index("alerts_of_workspaces_idx", "created_at", sqlite_where=_OF_WORKSPACE, postgresql_where=_OF_WORKSPACE),
)


class AlertRow(NamedTuple):
    """A rule of which callers are to be notified. Its threshold is in credits, or in seconds."""

    id: str
    org_id: str
    environment: Environment
    workspace_id: str
    external_meter_id: str | None
    meter_id: str | None
    kind: AlertKind
    threshold: int
    usage_name: str | None
    name: str | None
    version: int
    is_deleted: bool
    created_at: datetime


class TakenOn(NamedTuple):
    """What a meter has taken on, and the alert as it now is."""

    row: MeterAlertRow
    alert: AlertRow


_COLUMNS = [alerts.c[name] for name in AlertRow._fields]
_TAKEN_ON = [meter_alerts.c[name] for name in MeterAlertRow._fields]


async def insert_alert(writer: Writer, row: AlertRow) -> None:
    """Write a new alert."""
    await writer.execute(insert(alerts), row._asdict())


async def update_alert(writer: Writer, row: AlertRow) -> None:
    """Write what changes of an alert."""
    values = {name: getattr(row, name) for name in ("threshold", "name", "version", "is_deleted")}
    await writer.execute(update(alerts).where(alerts.c.id == row.id).values(values))


async def by_ids(
    reader: Reader, ids: Collection[str], *, org_id: str | None = None, environment: Environment | None = None
) -> dict[str, AlertRow]:
    """Return the alerts of these ids, deleted ones too, by id: of one tenant, or of whatever tenants."""
    statement = select(*_COLUMNS).where(alerts.c.id.in_(sorted(ids)))
    if org_id is not None:
        statement = statement.where(alerts.c.org_id == org_id, alerts.c.environment == environment)
    return {row.id: row for row in map(AlertRow._make, await reader.fetch(statement))}


async def lock(writer: Writer, id_: str) -> AlertRow | None:
    """Lock an alert until the transaction ends, and return it as it then is."""
    row = await writer.fetch_one(select(*_COLUMNS).where(alerts.c.id == id_).with_for_update())
    return AlertRow._make(row) if row is not None else None


async def lock_workspace(writer: Writer, name: MeterName) -> None:
    """Have no other transaction make an alert of the name's workspace until this one ends, as on SQLite none may."""
    if writer.dialect == "postgresql":
        names = f"alerts\x1f{name.org_id}\x1f{name.environment}\x1f{name.workspace_id}"
        await writer.fetch(select(func.pg_advisory_xact_lock(func.hashtextextended(names, 0))))


def _of_workspaces(org_id: str, environment: Environment, workspace_ids: Sequence[str]) -> Select[Any]:
    return select(*_COLUMNS).where(
        alerts.c.org_id == org_id,
        alerts.c.environment == environment,
        alerts.c.workspace_id.in_(workspace_ids),
        alerts.c.meter_id.is_(None),
        ~alerts.c.is_deleted,
    )


async def count_of_workspace(reader: Reader, name: MeterName) -> int:
    """Return how many alerts there are of each meter of the name's workspace."""
    statement = _of_workspaces(name.org_id, name.environment, [name.workspace_id]).with_only_columns(alerts.c.id)
    return len(await reader.fetch(statement))


async def of_meters(
    reader: Reader,
    meter_ids: Sequence[str],
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Collection[str],
) -> list[AlertRow]:
    """Return the alerts of these meters, and of each meter of these workspaces of the tenant, the oldest first."""
    of_meters = select(*_COLUMNS).where(alerts.c.meter_id.in_(meter_ids), ~alerts.c.is_deleted)
    of_workspaces = _of_workspaces(org_id, environment, sorted(workspace_ids))
    return sorted(map(AlertRow._make, await reader.fetch(union_all(of_meters, of_workspaces))))


class WorkspaceAlert(NamedTuple):
    """An alert of each meter of a workspace, and which workspace."""

    id: str
    org_id: str
    environment: Environment
    workspace_id: str
    created_at: datetime


async def of_workspaces(reader: Reader, *, since: datetime) -> list[WorkspaceAlert]:
    """Return the alerts of workspaces, of all tenants, that were made since then and are not deleted."""
    columns = [alerts.c[name] for name in WorkspaceAlert._fields]
    statement = select(*columns).where(alerts.c.meter_id.is_(None), ~alerts.c.is_deleted, alerts.c.created_at >= since)
    return list(map(WorkspaceAlert._make, await reader.fetch(statement)))


async def page(
    reader: Reader,
    page: Page,
    *,
    org_id: str,
    environment: Environment,
    workspace_ids: Sequence[str] | None,
) -> list[AlertRow]:
    """Return one page of the tenant's alerts, and one more row where there is one; None: of all workspaces."""
    statement = select(*_COLUMNS).where(
        alerts.c.org_id == org_id, alerts.c.environment == environment, ~alerts.c.is_deleted
    )
    if workspace_ids is not None:
        # Of one workspace by its index, of several by the tenant's.
        column = alerts.c.workspace_id
        is_one = len(workspace_ids) == 1
        statement = statement.where(
            column == workspace_ids[0] if is_one else unindexed(column, reader.dialect).in_(workspace_ids)
        )
    rows = await reader.fetch(page_statement(statement, alerts.c.id, page), page.parameters)
    return list(map(AlertRow._make, rows))


@cache
def _holding(dialect: str) -> Lookup:
    both = meter_alerts.join(alerts, alerts.c.id == meter_alerts.c.alert_id)
    statement = select(*_TAKEN_ON, *_COLUMNS).select_from(both).where(meter_alerts.c.until_seq.is_(None))
    return Lookup(dialect, statement, meter_alerts.c.meter_id)


async def taken_on(reader: Reader, meter_ids: Sequence[str]) -> list[TakenOn]:
    """Return what these meters have taken on and not given up, with the alerts as they now are."""
    rows = await reader.look_up(_holding(reader.dialect), [(id_,) for id_ in meter_ids])
    count = len(_TAKEN_ON)
    return [TakenOn(MeterAlertRow._make(row[:count]), AlertRow._make(row[count:])) for row in rows]
