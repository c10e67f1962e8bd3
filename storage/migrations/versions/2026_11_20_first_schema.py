"""The first schema: keys, customers, meters, usage days, the ledger and idempotency keys.

Revision: 2026_11_20_first_schema.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_20_first_schema"
down_revision = None
branch_labels = None
depends_on = None

#: How many partitions PostgreSQL spreads the rows of all meters over.
PARTITIONS = 8


def upgrade() -> None:
    """Create the tables; on PostgreSQL those that grow with usage are partitioned by meter."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    name = postgresql.TEXT(collation="C") if is_postgresql else sa.Text()
    instant = sa.DateTime(timezone=True)
    short = sa.String(16)

    op.create_table(
        "api_keys",
        sa.Column("id", name, nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", short, nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("workspace_ids", sa.Text()),
        sa.Column("digest", name, nullable=False),
        sa.Column("expires_at", instant),
        sa.Column("revoked_at", instant),
        sa.Column("created_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
        sa.UniqueConstraint("digest", name="api_keys_digest_key"),
    )
    op.create_table(
        "customers",
        sa.Column("id", name, nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", short, nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("external_id", name),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("updated_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="customers_pkey"),
        sa.UniqueConstraint(
            "org_id", "environment", "external_id", name="customers_org_id_environment_external_id_key"
        ),
    )
    op.create_index("customers_org_id_environment_id_idx", "customers", ["org_id", "environment", "id"])
    op.create_table(
        "billing_meters",
        sa.Column("id", name, nullable=False),
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", short, nullable=False),
        sa.Column("workspace_id", name, nullable=False),
        sa.Column("external_meter_id", name, nullable=False),
        sa.Column("customer_id", name),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("total_credits", sa.BigInteger(), nullable=False),
        sa.Column("used_credits", sa.BigInteger(), nullable=False),
        sa.Column("allow_overages", sa.Boolean(), nullable=False),
        sa.Column("spend_cap", sa.BigInteger()),
        sa.Column("limit_credits", sa.BigInteger()),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("updated_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("id", name="billing_meters_pkey"),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="billing_meters_customer_id_fkey"),
        sa.UniqueConstraint(
            "org_id",
            "environment",
            "workspace_id",
            "external_meter_id",
            name="billing_meters_names_key",
        ),
    )
    op.create_index("billing_meters_org_id_environment_id_idx", "billing_meters", ["org_id", "environment", "id"])
    op.create_index("billing_meters_customer_id_id_idx", "billing_meters", ["customer_id", "id"])
    op.create_table(
        "usage_days",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("usage_name", name, nullable=False),
        sa.Column("total_usage", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "day", "usage_name", name="usage_days_pkey"),
        sqlite_with_rowid=False,
        postgresql_partition_by="HASH (meter_id)",
    )
    op.create_table(
        "ledger_entries",
        sa.Column("meter_id", name, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", short, nullable=False),
        sa.Column("key", name),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("total_credits_after", sa.BigInteger(), nullable=False),
        sa.Column("used_credits_after", sa.BigInteger(), nullable=False),
        sa.Column("limit_credits", sa.BigInteger()),
        sa.Column("usage_name", sa.Text()),
        sa.Column("day", sa.Date()),
        sa.Column("requested_amount", sa.BigInteger()),
        sa.Column("policy", short),
        sa.Column("voids_seq", sa.BigInteger()),
        sa.Column("sent_at", instant),
        sa.Column("recorded_at", instant, nullable=False),
        sa.Column("recorded_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "seq", name="ledger_entries_pkey"),
        sa.UniqueConstraint("meter_id", "kind", "key", name="ledger_entries_meter_id_kind_key_key"),
        postgresql_partition_by="HASH (meter_id)",
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("org_id", name, nullable=False),
        sa.Column("environment", short, nullable=False),
        sa.Column("operation", name, nullable=False),
        sa.Column("key", name, nullable=False),
        sa.Column("request_digest", sa.Text(), nullable=False),
        sa.Column("result_id", name, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.PrimaryKeyConstraint("org_id", "environment", "operation", "key", name="idempotency_keys_pkey"),
    )
    if is_postgresql:
        for table in ("usage_days", "ledger_entries"):
            for remainder in range(PARTITIONS):
                op.execute(
                    f"CREATE TABLE {table}_{remainder} PARTITION OF {table} "
                    f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder})"
                )
