"""Webhooks: the endpoints, and what is sent to them.

Revision: 2026_11_28_webhooks, after 2026_11_28_events.

The release before it goes on working, and delivers nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_webhooks"
down_revision = "2026_11_28_events"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", name, nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("workspace_ids", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("secret_generation", sa.Integer(), nullable=False),
        sa.Column("previous_until", instant),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("failing_since", instant),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="webhook_endpoints_pkey"),
    )
    op.create_index("webhook_endpoints_org_id_environment_id_idx", "webhook_endpoints", ["org_id", "environment", "id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", name, nullable=False),
        sa.Column("endpoint_id", name, nullable=False),
        sa.Column("owner_id", name, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", instant),
        sa.Column("claimed_by", name),
        sa.Column("opened_at", instant, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="webhook_deliveries_pkey"),
        sa.UniqueConstraint(
            "owner_id", "number", "endpoint_id", name="webhook_deliveries_owner_id_number_endpoint_id_key"
        ),
    )
    is_pending = sa.text("state = 'pending'")
    for index, columns, condition in (
        ("webhook_deliveries_due_idx", ["endpoint_id", "next_attempt_at"], is_pending),
        ("webhook_deliveries_endpoint_id_id_idx", ["endpoint_id", "id"], None),
        ("webhook_deliveries_endpoint_id_state_id_idx", ["endpoint_id", "state", "id"], None),
        ("webhook_deliveries_created_at_idx", ["created_at"], None),
    ):
        op.create_index(index, "webhook_deliveries", columns, sqlite_where=condition, postgresql_where=condition)
