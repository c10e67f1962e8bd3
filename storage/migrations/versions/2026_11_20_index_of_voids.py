"""The index that finds what is already voided of a usage entry.

Revision: 2026_11_20_index_of_voids, after 2026_11_20_first_schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_20_index_of_voids"
down_revision = "2026_11_20_first_schema"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Index the few entries that void another one."""
    op.create_index(
        "ledger_entries_meter_id_voids_seq_idx",
        "ledger_entries",
        ["meter_id", "voids_seq"],
        sqlite_where=sa.text("voids_seq IS NOT NULL"),
        postgresql_where=sa.text("voids_seq IS NOT NULL"),
    )
