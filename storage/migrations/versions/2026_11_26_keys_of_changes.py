"""A key for each refill and change of settings whose request had none, so that a key that is lost is found.

Revision: 2026_11_26_keys_of_changes, after 2026_11_26_opening_settings.

The gateway gives such entries keys that begin with `tollgate/`, which the API does not show. The release before it goes
on working; what it writes after this migration lacks them, and `tollgate verify` names each such entry.
"""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_26_keys_of_changes"
down_revision = "2026_11_26_opening_settings"
branch_labels = None
depends_on = None

_entries = sa.Table(
    "ledger_entries",
    sa.MetaData(),
    *[sa.Column(name, sa.Text()) for name in ("meter_id", "kind", "key")],
    sa.Column("seq", sa.BigInteger()),
)


def upgrade() -> None:
    """Fill the keys, each with what names the entry."""
    op.execute(
        sa.update(_entries)
        .where(_entries.c.key.is_(None), _entries.c.kind.in_(["refill", "settings"]))
        .values(key="tollgate/" + _entries.c.meter_id + "/" + sa.cast(_entries.c.seq, sa.Text()))
    )
