"""Events, the outbox of what has happened to meters.

Revision: 2026_11_28_events, after 2026_11_27_buckets.

The release before it goes on working, and writes no events of what it decides.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_events"
down_revision = "2026_11_27_buckets"
branch_labels = None
depends_on = None

#: As many partitions as the other tables of meters have.
PARTITIONS = 8


def upgrade() -> None:
    """Create the table, and add the columns with what they are of a meter without events, alerts and refills."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    op.add_column("billing_meters", sa.Column("last_event", sa.BigInteger(), nullable=False, server_default="0"))
    for column in ("has_alerts", "has_auto_refill"):
        op.add_column("billing_meters", sa.Column(column, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "events",
        sa.Column("owner_id", name, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("workspace_id", name),
        sa.Column("type", name, nullable=False),
        sa.Column("seq", sa.BigInteger()),
        sa.Column("alert_id", name),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("position", name, nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("is_new", sa.Boolean(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("owner_id", "number", name="events_pkey"),
        postgresql_partition_by="HASH (owner_id)",
    )
    if is_postgresql:
        for remainder in range(PARTITIONS):
            op.execute(
                f"CREATE TABLE events_{remainder} PARTITION OF events "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
            )
    for index, columns in (
        ("events_org_id_environment_position_idx", ["org_id", "environment", "position"]),
        ("events_org_id_environment_type_position_idx", ["org_id", "environment", "type", "position"]),
        ("events_owner_id_position_idx", ["owner_id", "position"]),
        ("events_created_at_idx", ["created_at"]),
    ):
        op.create_index(index, "events", columns)
    is_new = sa.text("is_new")
    op.create_index("events_new_idx", "events", ["owner_id", "number"], sqlite_where=is_new, postgresql_where=is_new)
