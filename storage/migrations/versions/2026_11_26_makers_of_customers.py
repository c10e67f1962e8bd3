"""Which key made each customer.

Revision: 2026_11_26_makers_of_customers, after 2026_11_21_filters.

The release before it goes on working: it leaves the new column null in the customers that it makes.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_26_makers_of_customers"
down_revision = "2026_11_21_filters"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Who made the customers that are there is not known."""
    name = postgresql.TEXT(collation="C") if op.get_bind().dialect.name == "postgresql" else sa.Text()
    op.add_column("customers", sa.Column("created_by", name))
