"""The alerts of workspaces that a process knows, so that a group of commands need not ask which there are.

It knows their ids alone: what they are is read when a meter takes one on, after the meter's lock.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from storage import alerts
from storage.alerts import AlertRow
from storage.engine.transactions import Reader
from storage.meters.billing_meters import BillingMeterRow

if TYPE_CHECKING:
    from storage.tenants import Environment

#: How much longer than a transaction may take one that makes an alert does, and clocks may lie apart.
OVERLAP = timedelta(minutes=2)

_EVER = datetime(1970, 1, 1, tzinfo=UTC)


class WorkspaceAlerts:
    """The ids of the alerts of workspaces, some of which may be deleted already."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, Environment, str], set[str]] = {}
        self._since = _EVER

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._ids)

    def of(self, meter: BillingMeterRow) -> Collection[str]:
        """Return the ids of the alerts of a meter's workspace."""
        return self._ids.get((meter.org_id, meter.environment, meter.workspace_id), ())

    def add(self, alert: AlertRow | alerts.WorkspaceAlert) -> None:
        """Know an alert."""
        self._ids.setdefault((alert.org_id, alert.environment, alert.workspace_id), set()).add(alert.id)

    def discard(self, id_: str, meter: BillingMeterRow) -> None:
        """Know an alert of a meter's workspace no longer, because it is deleted."""
        of = (meter.org_id, meter.environment, meter.workspace_id)
        self._ids.get(of, set()).discard(id_)
        if not self._ids.get(of, True):
            del self._ids[of]

    async def refresh(self, reader: Reader) -> None:
        """Read what was made since the last time. What is deleted is noticed where a meter would take it on."""
        for alert in await alerts.of_workspaces(reader, since=self._since):
            self.add(alert)
            self._since = max(self._since, alert.created_at - OVERLAP)
