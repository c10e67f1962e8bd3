"""Automatic refills, and the requests that they make.

Revision: 2026_11_28_auto_refills, after 2026_11_28_webhooks.

The release before it goes on working, and makes no requests.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_auto_refills"
down_revision = "2026_11_28_webhooks"
branch_labels = None
depends_on = None

#: As many partitions as the other tables of meters have.
PARTITIONS = 8


def upgrade() -> None:
    """Create the tables."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "auto_refills",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("below", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("max_refills", sa.Integer(), nullable=False),
        sa.Column("max_credits", sa.BigInteger(), nullable=False),
        sa.Column("window_seconds", sa.Integer(), nullable=False),
        sa.Column("cooldown_seconds", sa.Integer(), nullable=False),
        sa.Column("request_seconds", sa.Integer(), nullable=False),
        sa.Column("max_failures", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_failure", sa.Text()),
        sa.Column("is_suspended", sa.Boolean(), nullable=False),
        sa.Column("last_request", sa.BigInteger(), nullable=False),
        sa.Column("is_capped", sa.Boolean(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("meter_id", name="auto_refills_pkey"),
    )
    op.create_table(
        "auto_refill_requests",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("requested_at", instant, nullable=False),
        sa.Column("expires_at", instant, nullable=False),
        sa.Column("closed_at", instant),
        sa.Column("failure", sa.Text()),
        sa.Column("failure_key", name),
        sa.Column("entry_seq", sa.BigInteger()),
        sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("meter_id", "number", name="auto_refill_requests_pkey"),
        postgresql_partition_by="HASH (meter_id)",
    )
    if is_postgresql:
        for remainder in range(PARTITIONS):
            op.execute(
                f"CREATE TABLE auto_refill_requests_{remainder} PARTITION OF auto_refill_requests "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
            )
    op.create_index(
        "auto_refill_requests_meter_id_requested_at_idx", "auto_refill_requests", ["meter_id", "requested_at"]
    )
