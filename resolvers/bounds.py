"""How much one request may ask for of each kind, and what one process keeps waiting.

The numbers here are what the API promises its clients. The gateway's settings may lower those of a request; what they
say is in every `Context` as `bounds`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most of each; `docs/limits.md` says what is refused beyond."""

    page_rows: int = 100
    nodes: int = 100
    """The ids of `nodes`."""
    batch_events: int = 1_000
    range_days: int = 366
    """The days of one range of usage."""
    usage_names: int = 100
    """The names that one range is asked for."""
    usage_days: int = 10_000
    """The usage days that one meter's field answers."""
    request_usage_days: int = 200_000
    """The usage days of all meters that one request answers by one statement."""
    request_entries: int = 20_000
    """The ledger entries, or the grants of `burn_down`, of all meters that one request answers by one statement."""
    live_grants: int = 1_000
    """The live credit grants that a meter may have when another one is made."""
    open_holds: int = 1_000
    """The open holds that a meter may have; a meter's own `max_open_holds` may be lower."""
    waiting_events: int = 20_000
    """The usage events of the process that wait for their transaction; beyond them a caller is asked to come again."""


#: Without settings.
DEFAULT_BOUNDS = Bounds()
