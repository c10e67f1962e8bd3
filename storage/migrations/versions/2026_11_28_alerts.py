"""Alerts, and what meters have taken on of them.

Revision: 2026_11_28_alerts, after 2026_11_28_auto_refills.

The release before it goes on working, and triggers no alerts by what it decides.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_alerts"
down_revision = "2026_11_28_auto_refills"
branch_labels = None
depends_on = None

#: As many partitions as the other tables of meters have.
PARTITIONS = 8


def upgrade() -> None:
    """Create the tables."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    short, big, instant = sa.String(16), sa.BigInteger(), sa.DateTime(timezone=True)
    op.create_table(
        "alerts",
        sa.Column("id", name, nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", short, nullable=False),
        sa.Column("workspace_id", name, nullable=False),
        sa.Column("external_meter_id", name),
        sa.Column("meter_id", name),
        sa.Column("kind", short, nullable=False),
        sa.Column("threshold", big, nullable=False),
        sa.Column("usage_name", name),
        sa.Column("name", sa.Text()),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_deleted", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("created_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="alerts_pkey"),
    )
    for index, columns in (
        ("alerts_org_id_environment_id_idx", ["org_id", "environment", "id"]),
        ("alerts_org_id_environment_workspace_id_id_idx", ["org_id", "environment", "workspace_id", "id"]),
    ):
        op.create_index(index, "alerts", columns)
    for index, column, condition in (
        ("alerts_meter_id_idx", "meter_id", "meter_id IS NOT NULL"),
        ("alerts_of_workspaces_idx", "created_at", "meter_id IS NULL"),
    ):
        where = sa.text(condition)
        op.create_index(index, "alerts", [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "meter_alerts",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("alert_id", name, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", short, nullable=False),
        sa.Column("threshold", big, nullable=False),
        sa.Column("usage_name", name),
        sa.Column("since_seq", big, nullable=False),
        sa.Column("since_at", instant, nullable=False),
        sa.Column("triggers_if_past", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("until_seq", big),
        sa.Column("last_triggered_at", instant),
        sa.Column("checked_until", instant),
        sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("meter_id", "alert_id", "version", name="meter_alerts_pkey"),
        postgresql_partition_by="HASH (meter_id)",
    )
    if is_postgresql:
        for remainder in range(PARTITIONS):
            op.execute(
                f"CREATE TABLE meter_alerts_{remainder} PARTITION OF meter_alerts "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
            )
