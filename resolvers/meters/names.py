"""The two names that a caller gives a meter."""

from functools import lru_cache

from resolvers.actor import Actor
from resolvers.values import NAME_LENGTH, check_text
from storage.meters.billing_meters import MeterName
from storage.tenants import Environment


def meter_name(actor: Actor, workspace_id: str, external_meter_id: str) -> MeterName:
    """Return the full name of a meter that the actor names. Raises `InvalidInput`."""
    return _meter_name(actor.org_id, actor.environment, workspace_id, external_meter_id)


@lru_cache(maxsize=10_000)
def _meter_name(org_id: str, environment: Environment, workspace_id: str, external_meter_id: str) -> MeterName:
    """Return the checked name; most commands are for a meter that was named before."""
    check_text("workspaceId", workspace_id, length=NAME_LENGTH)
    check_text("externalMeterId", external_meter_id, length=NAME_LENGTH)
    return MeterName(org_id, environment, workspace_id, external_meter_id)
