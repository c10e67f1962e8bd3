"""What the filters of customers and meters go by.

Revision: 2026_11_21_filters, after 2026_11_21_customer_sessions.

The release before it goes on working: it knows nothing of the new columns, leaves them null in the rows that it makes
and as they are in the rows that it changes. Until a gateway of this release writes such a row again, which repairs it,
the filters by email and name may miss a customer or find it by what it was called before, and the one by available
credits may miss a meter, but never answers one with more credits than asked for. `tollgate verify` names each such row
once all gateways are of this release.

Rows are filled a portion at a time, so that memory is bounded; the tables are locked until the migration is done.
"""

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_21_filters"
down_revision = "2026_11_21_customer_sessions"
branch_labels = None
depends_on = None

#: How many rows are read and written at once.
PORTION = 1_000


def upgrade() -> None:
    """Add the columns, fill them, and index them."""
    name = postgresql.TEXT(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.add_column("customers", sa.Column("email_folded", name))
    op.add_column("customers", sa.Column("name_folded", name))
    op.add_column("billing_meters", sa.Column("available_bits", sa.SmallInteger()))
    _fill("customers", ["email", "name"], {"email_folded": name, "name_folded": name}, _folded)
    _fill("billing_meters", ["limit_credits", "used_credits"], {"available_bits": sa.SmallInteger()}, _bits)
    for table, columns in (
        ("customers", ["org_id", "environment", "email_folded", "id"]),
        ("customers", ["org_id", "environment", "name_folded"]),
        ("customers", ["org_id", "environment", "created_at"]),
        ("billing_meters", ["org_id", "environment", "workspace_id", "id"]),
        ("billing_meters", ["org_id", "environment", "available_bits", "id"]),
    ):
        op.create_index(f"{table}_{'_'.join(columns)}_idx", table, columns)


def _folded(email: str, name: str | None) -> Sequence[str | None]:
    return email.casefold(), None if name is None else name.casefold()


def _bits(limit_credits: int | None, used_credits: int) -> Sequence[int | None]:
    return [None if limit_credits is None else max(0, limit_credits - used_credits).bit_length()]


def _fill(
    table_name: str,
    sources: Sequence[str],
    targets: dict[str, sa.types.TypeEngine[Any]],
    values_of: Callable[..., Sequence[Any]],
) -> None:
    """Write the target columns of every row, as they follow from its source columns."""
    connection = op.get_bind()
    columns: list[sa.Column[Any]] = [sa.Column(name) for name in sources]
    table = sa.Table(
        table_name,
        sa.MetaData(),
        sa.Column("id", sa.Text()),
        *columns,
        *[sa.Column(name, type_) for name, type_ in targets.items()],
    )
    statement = (
        sa.update(table)
        .where(table.c.id == sa.bindparam("row_id"))
        .values({name: sa.bindparam(f"new_{name}") for name in targets})
    )
    last = ""
    while rows := connection.execute(
        sa.select(table.c.id, *columns).where(table.c.id > last).order_by(table.c.id).limit(PORTION)
    ).all():
        last = rows[-1].id
        changed = []
        for id_, *values in rows:
            new = dict(zip([f"new_{name}" for name in targets], values_of(*values), strict=True))
            if any(value is not None for value in new.values()):
                changed.append({"row_id": id_} | new)
        if changed:
            connection.execute(statement, changed)
