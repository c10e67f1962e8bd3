"""Sessions of customers, kept beside the keys.

Revision: 2026_11_21_customer_sessions, after 2026_11_20_index_of_voids.

The release before it writes keys without the new columns, and takes a session's token for a malformed key.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_21_customer_sessions"
down_revision = "2026_11_20_index_of_voids"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what a session has beside what a key has, and the index of the sessions that expire."""
    if op.get_bind().dialect.name == "postgresql":
        # What this and the next migration change, locked in the order in which gateways lock: the other way round, a
        # gateway that has locked a meter and asks for its customer, and the migration, would wait for each other.
        op.execute("LOCK TABLE billing_meters, customers, api_keys IN ACCESS EXCLUSIVE MODE")
    name = postgresql.TEXT(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.add_column("api_keys", sa.Column("customer_id", name))
    op.add_column("api_keys", sa.Column("parent_id", name))
    op.create_index(
        "api_keys_expires_at_idx",
        "api_keys",
        ["expires_at"],
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
