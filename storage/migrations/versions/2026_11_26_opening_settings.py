"""What `tollgate verify` replays: an opening's settings, and the idempotency key that a customer or meter was made by.

Revision: 2026_11_26_opening_settings, after 2026_11_26_makers_of_customers.

What exists is filled from what is known of it: the first value of a setting is the old one of the first change, or the
present one where there was none. The release before it goes on working; what it makes after this migration lacks both,
and `tollgate verify` names each such meter.

Rows are filled a portion at a time, so that memory is bounded.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_26_opening_settings"
down_revision = "2026_11_26_makers_of_customers"
branch_labels = None
depends_on = None

#: How many rows are read and written at once.
PORTION = 1_000

#: What an opening records, by its name in the ledger.
SETTINGS = {
    "orgId": "org_id",
    "environment": "environment",
    "workspaceId": "workspace_id",
    "externalMeterId": "external_meter_id",
    "timezone": "timezone",
    "allowOverages": "allow_overages",
    "spendCap": "spend_cap",
    "customerId": "customer_id",
}

_metadata = sa.MetaData()
_customers = sa.Table("customers", _metadata, sa.Column("id", sa.Text()), sa.Column("idempotency_key", sa.Text()))
_meters = sa.Table(
    "billing_meters",
    _metadata,
    *[sa.Column(name, sa.Text()) for name in ("id", "org_id", "environment", "workspace_id", "external_meter_id")],
    *[sa.Column(name, sa.Text()) for name in ("timezone", "customer_id")],
    sa.Column("allow_overages", sa.Boolean()),
    sa.Column("spend_cap", sa.BigInteger()),
)
_entries = sa.Table(
    "ledger_entries",
    _metadata,
    sa.Column("meter_id", sa.Text()),
    sa.Column("seq", sa.BigInteger()),
    sa.Column("kind", sa.String(16)),
    sa.Column("key", sa.Text()),
    sa.Column("metadata", sa.Text()),
)
_keys = sa.Table(
    "idempotency_keys",
    _metadata,
    *[sa.Column(name, sa.Text()) for name in ("org_id", "environment", "operation", "key", "result_id")],
)


def upgrade() -> None:
    """Add the customers' column, and fill it and the openings."""
    name = postgresql.TEXT(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.add_column("customers", sa.Column("idempotency_key", name))
    _fill_keys()
    _fill_openings()


def _portions(table: sa.Table, *key: str) -> Iterator[Sequence[Any]]:
    """Return the rows of the table, in the order of its key."""
    columns = [table.c[name] for name in key]
    first = sa.select(table).order_by(*columns).limit(PORTION)
    rows = op.get_bind().execute(first).all()
    while rows:
        yield rows
        last = [sa.literal(getattr(rows[-1], name), sa.Text()) for name in key]
        rows = op.get_bind().execute(first.where(sa.tuple_(*columns) > sa.tuple_(*last))).all()


def _fill_keys() -> None:
    made = {
        "createCustomer": sa.update(_customers)
        .where(_customers.c.id == sa.bindparam("made"))
        .values(idempotency_key=sa.bindparam("by")),
        "createBillingMeter": sa.update(_entries)
        .where(_entries.c.meter_id == sa.bindparam("made"), _entries.c.seq == 1, _entries.c.kind == "opening")
        .values(key=sa.bindparam("by")),
    }
    for rows in _portions(_keys, "org_id", "environment", "operation", "key"):
        for operation, statement in made.items():
            found = [{"made": row.result_id, "by": row.key} for row in rows if row.operation == operation]
            if found:
                op.get_bind().execute(statement, found)


def _fill_openings() -> None:
    connection = op.get_bind()
    statement = (
        sa.update(_entries)
        .where(_entries.c.meter_id == sa.bindparam("opened"), _entries.c.seq == 1, _entries.c.kind == "opening")
        .values(metadata=sa.bindparam("settings"))
    )
    for meters in _portions(_meters, "id"):
        # Read after the meters: the first change that is found began with what the meter had, or with what came before.
        changes = connection.execute(
            sa.select(_entries.c.meter_id, _entries.c.metadata)
            .where(_entries.c.meter_id.in_([meter.id for meter in meters]), _entries.c.kind == "settings")
            .order_by(_entries.c.meter_id, _entries.c.seq.desc())
        )
        first: dict[str, dict[str, Any]] = {meter.id: {} for meter in meters}
        for meter_id, changed in changes:
            first[meter_id] |= {setting: old for setting, (old, _new) in orjson.loads(changed).items()}
        openings = []
        for meter in meters:
            values = {setting: getattr(meter, column) for setting, column in SETTINGS.items()}
            spend_cap = values["spendCap"]
            values["spendCap"] = None if spend_cap is None else str(spend_cap)
            settings = {setting: [None, value] for setting, value in (values | first[meter.id]).items()}
            openings.append(
                {"opened": meter.id, "settings": orjson.dumps(settings, option=orjson.OPT_SORT_KEYS).decode()}
            )
        connection.execute(statement, openings)
