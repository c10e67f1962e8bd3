"""Credit grants and holds.

Revision: 2026_11_27_grants_and_holds, after 2026_11_26_keys_of_changes.

The release before it goes on working with meters that have neither; on others it would spend what is held.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_27_grants_and_holds"
down_revision = "2026_11_26_keys_of_changes"
branch_labels = None
depends_on = None

#: As many partitions as the other tables of meters have.
PARTITIONS = 8


def upgrade() -> None:
    """Create the tables, and add the columns with what they are of a meter without grants and holds."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    instant = sa.DateTime(timezone=True)
    short = sa.String(16)
    big, no = sa.BigInteger(), sa.false()
    op.add_column("billing_meters", sa.Column("held_credits", big, nullable=False, server_default="0"))
    op.add_column("billing_meters", sa.Column("pinned_credits", big, nullable=False, server_default="0"))
    op.add_column("billing_meters", sa.Column("open_holds", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("billing_meters", sa.Column("max_open_holds", sa.Integer()))
    op.add_column("billing_meters", sa.Column("has_grants", sa.Boolean(), nullable=False, server_default=no))
    op.add_column("billing_meters", sa.Column("has_holds", sa.Boolean(), nullable=False, server_default=no))
    op.add_column("billing_meters", sa.Column("next_due_at", instant))
    has_due = sa.text("next_due_at IS NOT NULL")
    op.create_index(
        "billing_meters_next_due_at_idx",
        "billing_meters",
        ["next_due_at"],
        sqlite_where=has_due,
        postgresql_where=has_due,
    )
    op.add_column("ledger_entries", sa.Column("held_credits_after", big, nullable=False, server_default="0"))
    op.add_column("ledger_entries", sa.Column("grant_seq", sa.BigInteger()))
    op.add_column("ledger_entries", sa.Column("hold_seq", sa.BigInteger()))
    op.add_column("ledger_entries", sa.Column("draws", sa.Text()))
    op.create_table(
        "credit_grants",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("key", name, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("category", short, nullable=False),
        sa.Column("expires_at", instant),
        sa.Column("open_credits", sa.BigInteger(), nullable=False),
        sa.Column("pinned_credits", sa.BigInteger(), nullable=False),
        sa.Column("drawn_credits", sa.BigInteger(), nullable=False),
        sa.Column("covered_credits", sa.BigInteger(), nullable=False),
        sa.Column("expired_credits", sa.BigInteger(), nullable=False),
        sa.Column("revoked_credits", sa.BigInteger(), nullable=False),
        sa.Column("is_closed", sa.Boolean(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "seq", name="credit_grants_pkey"),
        postgresql_partition_by="HASH (meter_id)",
    )
    op.create_table(
        "holds",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hold_id", name, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("requested_amount", sa.BigInteger(), nullable=False),
        sa.Column("expires_in_seconds", sa.Integer(), nullable=False),
        sa.Column("state", short, nullable=False),
        sa.Column("committed_amount", sa.BigInteger()),
        sa.Column("expires_at", instant, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("closed_at", instant),
        sa.Column("pins", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "seq", name="holds_pkey"),
        sa.UniqueConstraint("meter_id", "hold_id", name="holds_meter_id_hold_id_key"),
        postgresql_partition_by="HASH (meter_id)",
    )
    if is_postgresql:
        for table in ("credit_grants", "holds"):
            for remainder in range(PARTITIONS):
                op.execute(
                    f"CREATE TABLE {table}_{remainder} PARTITION OF {table} "
                    f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
                )
    for index, table, condition in (
        ("credit_grants_usable_idx", "credit_grants", "open_credits > 0 OR pinned_credits > 0"),
        ("credit_grants_covered_idx", "credit_grants", "covered_credits > 0"),
    ):
        where = sa.text(condition)
        op.create_index(index, table, ["meter_id"], sqlite_where=where, postgresql_where=where)
    op.create_index("holds_meter_id_state_seq_idx", "holds", ["meter_id", "state", "seq"])
