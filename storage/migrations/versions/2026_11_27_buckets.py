"""Where the rows of a meter lie on a database of several machines.

Revision: 2026_11_27_buckets, after 2026_11_27_grants_and_holds.

On any other database it is 0, which the release before it writes without knowing it.
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_27_buckets"
down_revision = "2026_11_27_grants_and_holds"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column to the tables of meters; no row is written."""
    for table in ("billing_meters", "usage_days", "credit_grants", "holds", "ledger_entries"):
        op.add_column(table, sa.Column("bucket", sa.Integer(), nullable=False, server_default="0"))
