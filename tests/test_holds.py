"""Holds: what they reserve, what becomes of them, and what is refused."""

from typing import Any

import pytest

from resolvers.actor import Scope
from storage.tenants import Environment
from tests.conftest import Caller, Gateway, gateway_on
from tests.credit_walks import Walk
from tests.steps import books_of, disagreements, entry_id, make_meter, meter_of, must, unchanged

# What a hold reserves.


@pytest.mark.parametrize(
    ("before", "step", "entries", "meter"),
    [
        ("meter 10", "hold h 6", "HOLD 6 h: base 6", "total 10, used 0, held 6, pinned 6, available 4"),
        ("meter 10", "hold h 10", "HOLD 10 h: base 10", "total 10, used 0, held 10, pinned 10, available 0"),
        ("meter 10", "hold h 11", "InsufficientCredits available 10, held 0 by 0", "total 10, used 0, available 10"),
        (
            "meter 10",
            "hold h 11 PARTIAL",
            "HOLD 10 of 11 h: base 10",
            "total 10, used 0, held 10, pinned 10, available 0",
        ),
        ("meter 0", "hold h 1 PARTIAL", "InsufficientCredits available 0, held 0 by 0", "total 0, used 0, available 0"),
        # What is held is neither used nor held again.
        (
            "meter 10; hold g 6",
            "hold h 5",
            "InsufficientCredits available 4, held 6 by 1",
            "total 10, used 0, held 6, pinned 6, available 4",
        ),
        (
            "meter 10; hold g 3; hold h 3",
            "use e 5",
            "InsufficientCredits available 4, held 6 by 2",
            "total 10, used 0, held 6, pinned 6, available 4",
        ),
        (
            "meter 10; hold h 6",
            "use e 5 PARTIAL",
            "USAGE 4 of 5: base 4",
            "total 10, used 4, held 6, pinned 6, available 0",
        ),
        # What is forced draws nothing that is held.
        (
            "meter 10; hold h 6",
            "use e 8 FORCE",
            "USAGE 8: base 4; over the limit",
            "total 10, used 8, held 6, pinned 6, available 0",
        ),
        # Overage can be held as well; nothing is pinned for it.
        (
            "meter 4 overages cap 10",
            "hold h 6",
            "HOLD 6 h: base 4",
            "total 4, used 0, held 6, pinned 4, available 8",
        ),
        (
            "meter 4 overages cap 10; hold g 6",
            "hold h 9",
            "SpendCapExceeded available 8, held 6 by 1",
            "total 4, used 0, held 6, pinned 4, available 8",
        ),
        ("meter 4 overages", "hold h 6", "HOLD 6 h: base 4", "total 4, used 0, held 6, pinned 4, available None"),
        ("meter 4 overages cap 9; use e 6", "hold h 6", "HOLD 6 h", "total 4, used 6, held 6, overage 2, available 1"),
        # In the order of use.
        (
            "meter 2; grant a 2 60s; grant b 2 p10",
            "hold h 5",
            "HOLD 5 h: b 2, a 2, base 1",
            "total 6, used 0, held 5, pinned 5, available 1",
        ),
        # A refill is spendable whatever is held.
        (
            "meter 4; hold h 4",
            "refill 3; use e 3",
            "REFILL 3; USAGE 3: base 3",
            "total 7, used 3, held 4, pinned 4, available 0",
        ),
    ],
)
async def test_what_is_held_is_reserved(gateway: Gateway, before: str, step: str, entries: str, meter: str) -> None:
    walk = Walk(gateway)
    await walk.take(before)
    assert await walk.take(step) == entries
    assert await walk.meter() == meter
    await walk.check()


# What a commit takes.

BEYOND = "meter 10; hold h 6"
CAPPED = "meter 0 overages cap 10; hold h 6"
LOWERED = f"{CAPPED}; cap 2"
SWITCHED_OFF = "meter 3 overages; hold h 6; overages off"
EXPIRED = "meter 10; hold h 6 60s; wait 60"
RELEASED = "meter 10; hold h 6; release h"


@pytest.mark.parametrize(
    ("before", "step", "entries", "left"),
    [
        # Less than is held, exactly that, and more that is available.
        (BEYOND, "commit h 4", "USAGE 4 h: base 4", ("COMMITTED 4", "used 4, available 6")),
        (BEYOND, "commit h 6", "USAGE 6 h: base 6", ("COMMITTED 6", "used 6, available 4")),
        (BEYOND, "commit h 9", "USAGE 9 h: base 9", ("COMMITTED 9", "used 9, available 1")),
        (BEYOND, "commit h 10 REJECT", "USAGE 10 h: base 10", ("COMMITTED 10", "used 10, available 0")),
        # More than is available: 4 beside the hold.
        (BEYOND, "commit h 13", "USAGE 10 of 13 h: base 10", ("COMMITTED 10", "used 10, available 0")),
        (
            BEYOND,
            "commit h 13 REJECT",
            "InsufficientCredits available 4, held 6 by 1",
            ("OPEN", "used 0, held 6, pinned 6, available 4"),
        ),
        (
            BEYOND,
            "commit h 13 FORCE",
            "USAGE 13 h: base 10; over the limit",
            ("COMMITTED 13", "used 13, overage 3, available 0"),
        ),
        # Beside the hold nothing is available: what is held is still taken, and PARTIAL refuses nothing.
        ("meter 6; hold h 6", "commit h 9", "USAGE 6 of 9 h: base 6", ("COMMITTED 6", "used 6, available 0")),
        (
            "meter 6; hold h 6",
            "commit h 9 REJECT",
            "InsufficientCredits available 0, held 6 by 1",
            ("OPEN", "used 0, held 6, pinned 6, available 0"),
        ),
        (
            "meter 10; hold h 6; hold g 4",
            "commit h 9",
            "USAGE 6 of 9 h: base 6",
            ("COMMITTED 6", "used 6, held 4, pinned 4, available 0"),
        ),
        (
            "meter 10; hold h 6; hold g 4",
            "commit h 9 REJECT",
            "InsufficientCredits available 0, held 10 by 2",
            ("OPEN", "used 0, held 10, pinned 10, available 0"),
        ),
        # Of a hold that PARTIAL cut to what was available.
        ("meter 4; hold h 6 PARTIAL", "commit h 6", "USAGE 4 of 6 h: base 4", ("COMMITTED 4", "used 4, available 0")),
        # After forced usage, which has taken nothing of what is held.
        (
            "meter 10; hold h 6; use e 8 FORCE",
            "commit h 6",
            "USAGE 6 h: base 6; over the limit",
            ("COMMITTED 6", "used 14, overage 4, available 0"),
        ),
        (
            "meter 10; hold h 6; use e 8 FORCE",
            "commit h 7",
            "USAGE 6 of 7 h: base 6; over the limit",
            ("COMMITTED 6", "used 14, overage 4, available 0"),
        ),
        # The cap as it was, and lowered under the hold: up to what is held a commit never fails for it.
        (CAPPED, "commit h 6 REJECT", "USAGE 6 h", ("COMMITTED 6", "used 6, overage 6, available 4")),
        (CAPPED, "commit h 11", "USAGE 10 of 11 h", ("COMMITTED 10", "used 10, overage 10, available 0")),
        (
            CAPPED,
            "commit h 11 REJECT",
            "SpendCapExceeded available 4, held 6 by 1",
            ("OPEN", "used 0, held 6, available 4"),
        ),
        (LOWERED, "commit h 2", "USAGE 2 h", ("COMMITTED 2", "used 2, overage 2, available 0")),
        (LOWERED, "commit h 4 REJECT", "USAGE 4 h; over the limit", ("COMMITTED 4", "used 4, overage 4, available 0")),
        (LOWERED, "commit h 6", "USAGE 6 h; over the limit", ("COMMITTED 6", "used 6, overage 6, available 0")),
        (LOWERED, "commit h 8", "USAGE 6 of 8 h; over the limit", ("COMMITTED 6", "used 6, overage 6, available 0")),
        (
            LOWERED,
            "commit h 8 REJECT",
            "SpendCapExceeded available 0, held 6 by 1",
            ("OPEN", "used 0, held 6, available 0"),
        ),
        (LOWERED, "commit h 8 FORCE", "USAGE 8 h; over the limit", ("COMMITTED 8", "used 8, overage 8, available 0")),
        # Overages switched off under it, 3 of its 6 being prepaid.
        (SWITCHED_OFF, "commit h 3", "USAGE 3 h: base 3", ("COMMITTED 3", "used 3, available 0")),
        (
            SWITCHED_OFF,
            "commit h 6",
            "USAGE 6 h: base 3; over the limit",
            ("COMMITTED 6", "used 6, overage 3, available 0"),
        ),
        (
            SWITCHED_OFF,
            "commit h 8",
            "USAGE 6 of 8 h: base 3; over the limit",
            ("COMMITTED 6", "used 6, overage 3, available 0"),
        ),
        (
            SWITCHED_OFF,
            "commit h 8 REJECT",
            "InsufficientCredits available 0, held 6 by 1",
            ("OPEN", "used 0, held 6, pinned 3, available 0"),
        ),
        (
            SWITCHED_OFF,
            "commit h 8 FORCE",
            "USAGE 8 h: base 3; over the limit",
            ("COMMITTED 8", "used 8, overage 5, available 0"),
        ),
        # Right before its end, and at it.
        (
            "meter 10; hold h 6 60s; wait 59.999999",
            "commit h 6",
            "USAGE 6 h: base 6",
            ("COMMITTED 6", "used 6, available 4"),
        ),
        (EXPIRED, "commit h 6", "HOLD_EXPIRY 6 h; HoldNotOpen EXPIRED", ("EXPIRED", "used 0, available 10")),
        (EXPIRED, "commit h 6 FORCE", "HOLD_EXPIRY 6 h; HoldNotOpen EXPIRED", ("EXPIRED", "used 0, available 10")),
        (EXPIRED, "commit h 0", "HOLD_EXPIRY 6 h; HoldNotOpen EXPIRED", ("EXPIRED", "used 0, available 10")),
        (EXPIRED, "commit h 6 RECORD", "HOLD_EXPIRY 6 h; USAGE 6: base 6", ("EXPIRED", "used 6, available 4")),
        (
            EXPIRED,
            "commit h 13 RECORD",
            "HOLD_EXPIRY 6 h; USAGE 10 of 13: base 10",
            ("EXPIRED", "used 10, available 0"),
        ),
        (
            EXPIRED,
            "commit h 13 REJECT RECORD",
            "HOLD_EXPIRY 6 h; InsufficientCredits available 10, held 0 by 0",
            ("EXPIRED", "used 0, available 10"),
        ),
        (
            EXPIRED,
            "commit h 13 FORCE RECORD",
            "HOLD_EXPIRY 6 h; USAGE 13: base 10; over the limit",
            ("EXPIRED", "used 13, overage 3, available 0"),
        ),
        (EXPIRED, "commit h 0 RECORD", "HOLD_EXPIRY 6 h", ("EXPIRED", "used 0, available 10")),
        # Released: as a plain debit, also where nothing is available.
        (RELEASED, "commit h 6", "HoldNotOpen RELEASED", ("RELEASED", "used 0, available 10")),
        (RELEASED, "commit h 13 FORCE", "HoldNotOpen RELEASED", ("RELEASED", "used 0, available 10")),
        (RELEASED, "commit h 6 RECORD", "USAGE 6: base 6", ("RELEASED", "used 6, available 4")),
        (RELEASED, "commit h 13 RECORD", "USAGE 10 of 13: base 10", ("RELEASED", "used 10, available 0")),
        (
            f"{RELEASED}; use e 10",
            "commit h 6 RECORD",
            "InsufficientCredits available 0, held 0 by 0",
            ("RELEASED", "used 10, available 0"),
        ),
        (RELEASED, "commit h 0", "replayed", ("RELEASED", "used 0, available 10")),
        (RELEASED, "commit h 0 RECORD", "replayed", ("RELEASED", "used 0, available 10")),
        # 0 is a release.
        (BEYOND, "commit h 0", "RELEASE 6 h", ("RELEASED", "used 0, available 10")),
        (BEYOND, "commit h 0 RECORD", "RELEASE 6 h", ("RELEASED", "used 0, available 10")),
    ],
)
async def test_a_commit_takes_what_is_held_and_decides_the_rest(
    gateway: Gateway, before: str, step: str, entries: str, left: tuple[str, str]
) -> None:
    state, meter = left
    walk = Walk(gateway)
    await walk.take(before)
    assert await walk.take(step) == entries
    assert (await walk.states()).split("; ")[0] == f"h {state}"
    assert (await walk.meter()).split(", ", 1)[1] == meter
    await walk.check()


@pytest.mark.parametrize(
    ("before", "step", "entries"),
    [
        # First what it has pinned, in that order, then what is open in the order of use.
        ("meter 10; hold h 6; grant b 10 p10", "commit h 9", "USAGE 9 h: base 6, b 3"),
        ("meter 4; grant a 4 p10; hold h 6; grant b 4 p5", "commit h 5", "USAGE 5 h: a 4, base 1"),
        ("meter 4; grant a 4 p10; hold h 6; grant b 4 p5", "commit h 9", "USAGE 9 h: a 4, base 2, b 3"),
        ("meter 4; grant a 4 p10; hold h 6; update a p90", "commit h 5", "USAGE 5 h: a 4, base 1"),
        # A pin survives the end of its grant and its revocation while the hold is open.
        ("meter 10; grant a 5 60s; hold h 8; wait 60", "commit h 8", "USAGE 8 h: a 5, base 3"),
        ("meter 10; grant a 5 60s; hold h 8; wait 60", "commit h 3", "USAGE 3 h: a 3; EXPIRY 2 a"),
        ("meter 10; grant a 5 60s; hold h 8; wait 60", "commit h 0", "RELEASE 8 h; EXPIRY 5 a"),
        ("meter 10; grant a 5 60s; hold h 8; wait 60", "release h", "RELEASE 8 h; EXPIRY 5 a"),
        ("meter 10; grant a 5 60s; hold h 8 90s; wait 90", "refill 1", "HOLD_EXPIRY 8 h; EXPIRY 5 a; REFILL 1"),
        ("meter 10; grant a 5 p10; hold h 8; revoke a", "commit h 3", "USAGE 3 h: a 3; REVOCATION 2 a"),
        # What is freed pays what is uncovered.
        ("meter 5 overages; hold h 5; use e 3", "release h", "RELEASE 5 h"),
        # What is beyond is uncovered.
        ("meter 5 overages; hold h 5", "commit h 8", "USAGE 8 h: base 5"),
        # The whole of a commit is in the entry's amount, which is voided by the hold's id.
        ("meter 10; hold h 6; commit h 9", "void h", "VOID 9: base 9"),
        ("meter 10; hold h 6 60s; wait 60; commit h 9 RECORD", "void h", "VOID 9: base 9"),
    ],
)
async def test_a_commit_draws_its_pins_and_then_what_is_open(
    gateway: Gateway, before: str, step: str, entries: str
) -> None:
    walk = Walk(gateway)
    await walk.take(before)
    assert await walk.take(step) == entries
    await walk.check()


# What is done again, and what comes too late.


@pytest.mark.parametrize(
    ("before", "step", "outcome"),
    [
        ("hold h 6", "hold h 6", "replayed"),
        ("hold h 6", "hold h 5", "IdempotencyConflict"),
        ("hold h 6", "hold h 6 PARTIAL", "IdempotencyConflict"),
        ("hold h 6", "hold h 6 60s", "IdempotencyConflict"),
        ("hold h 6; extend h 1000s", "hold h 6", "replayed"),
        # Also when it is closed, whatever is available by then.
        ("hold h 6; commit h 6; use e 4", "hold h 6", "replayed"),
        ("hold h 6; release h; use e 10", "hold h 6", "replayed"),
        ("hold h 6 60s; wait 60; use e 10", "hold h 6 60s", "replayed"),
        ("hold h 6; release h", "hold h 7", "IdempotencyConflict"),
        # Ids of holds and of events are one namespace.
        ("use h 6", "hold h 6", "IdempotencyConflict"),
        ("hold h 6", "use h 6", "IdempotencyConflict"),
        ("hold h 6; commit h 6", "use h 6", "IdempotencyConflict"),
        ("hold h 6; release h", "use h 6", "IdempotencyConflict"),
        ("hold h 6; release h; commit h 6 RECORD", "use h 6", "IdempotencyConflict"),
        ("hold h 6", "use h 0", ""),
        ("use h 6", "commit h 6", "HoldNotFound"),
        ("use h 6", "commit h 6 RECORD", "HoldNotFound"),
        ("use h 6", "release h", "HoldNotFound"),
        ("use h 6", "extend h 60s", "HoldNotFound"),
        ("use h 0", "hold h 6", "HOLD 6 h: base 6"),
        # Commits.
        ("hold h 6; commit h 4", "commit h 4", "replayed"),
        ("hold h 6; commit h 4", "commit h 4 RECORD", "replayed"),
        ("hold h 6; commit h 13", "commit h 13", "replayed"),
        ("hold h 6; commit h 4", "commit h 5", "IdempotencyConflict"),
        ("hold h 6; commit h 4", "commit h 4 REJECT", "IdempotencyConflict"),
        ("hold h 6; commit h 4", "commit h 0", "IdempotencyConflict"),
        ("hold h 6 60s; commit h 4; wait 60", "commit h 4", "replayed"),
        ("hold h 6; commit h 4; void h", "commit h 4", "replayed"),
        ("hold h 6; release h; commit h 4 RECORD", "commit h 4 RECORD", "replayed"),
        ("hold h 6; release h; commit h 4 RECORD", "commit h 4", "replayed"),
        ("hold h 6; release h; commit h 4 RECORD", "commit h 5 RECORD", "IdempotencyConflict"),
        # A commit that was refused has used nothing up.
        ("hold h 6; commit h 13 REJECT", "commit h 6", "USAGE 6 h: base 6"),
        # Releases, and commits of 0, which are releases.
        ("hold h 6; release h", "release h", "replayed"),
        ("hold h 6; release h", "commit h 0", "replayed"),
        ("hold h 6; commit h 0", "release h", "replayed"),
        ("hold h 6; commit h 0", "commit h 0", "replayed"),
        ("hold h 6; release h; commit h 4 RECORD", "release h", "replayed"),
        ("hold h 6; release h; commit h 4 RECORD", "commit h 0", "replayed"),
        ("hold h 6; commit h 4", "release h", "HoldNotOpen COMMITTED"),
        ("hold h 6 60s; wait 60", "release h", "HOLD_EXPIRY 6 h; HoldNotOpen EXPIRED"),
        # Extensions.
        ("hold h 6; release h", "extend h 60s", "HoldNotOpen RELEASED"),
        ("hold h 6; commit h 4", "extend h 60s", "HoldNotOpen COMMITTED"),
        ("hold h 6 60s; wait 60", "extend h 60s", "HOLD_EXPIRY 6 h; HoldNotOpen EXPIRED"),
        # Closed comes before an end that is too late.
        ("hold h 6; wait 1; release h", "extend h 86400s", "HoldNotOpen RELEASED"),
        ("hold h 6; wait 1", "extend h 86400s", "InvalidInput expiresInSeconds"),
        ("hold h 6; wait 1", "extend h 86399s", ""),
        # What is unknown.
        ("use e 1", "commit x 1", "HoldNotFound"),
        ("hold h 6", "commit x 1 RECORD", "HoldNotFound"),
        ("hold h 6", "commit x 0 RECORD", "HoldNotFound"),
        ("hold h 6", "release x", "HoldNotFound"),
        ("hold h 6", "extend x 60s", "HoldNotFound"),
    ],
)
async def test_a_hold_is_closed_at_most_once(gateway: Gateway, before: str, step: str, outcome: str) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 10; {before}")
    states, meter = await walk.states(), await walk.meter()
    assert await walk.take(step) == outcome
    if not outcome.startswith(("HOLD ", "USAGE")):
        assert (await walk.states(), await walk.meter()) == (states, meter)
    await walk.check()


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ("hold h 6 60s; wait 59.999999", "h OPEN"),
        ("hold h 6 60s; wait 60", "h EXPIRED"),
        ("hold h 6; wait 899.999999", "h OPEN"),
        ("hold h 6; wait 900", "h EXPIRED"),
        # An extension counts from now, and never makes the end earlier.
        ("hold h 6 60s; wait 30; extend h 60s; wait 59", "h OPEN"),
        ("hold h 6 60s; wait 30; extend h 60s; wait 60", "h EXPIRED"),
        ("hold h 6 60s; extend h 10s; wait 59", "h OPEN"),
        ("hold h 6 60s; extend h 10s; wait 60", "h EXPIRED"),
        # So often that it is open for 24 hours.
        ("hold h 6 60s; extend h 86400s; wait 86399", "h OPEN"),
        ("hold h 6 60s; extend h 86400s; wait 86400", "h EXPIRED"),
    ],
)
async def test_a_hold_is_open_until_its_end(gateway: Gateway, steps: str, state: str) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 10; {steps}")
    is_open = state == "h OPEN"
    expected = "total 10, used 0, " + ("held 6, pinned 6, available 4" if is_open else "available 10")
    assert (await walk.states(), await walk.meter()) == (state, expected)
    # The same once what is due is written.
    assert await walk.take("use e 10 PARTIAL") == (
        "USAGE 4 of 10: base 4" if is_open else "HOLD_EXPIRY 6 h; USAGE 10: base 10"
    )
    assert await walk.states() == state
    await walk.check()


# What is answered, and what is refused.

HOLD = """id holdId amount requestedAmount state committedAmount expiresAt createdAt closedAt metadata
  billingMeter { id }"""
METER = "billingMeter { usedCredits heldCredits pinnedCredits availableCredits }"
ENTRY = """entry {
  id kind amount requestedAmount policy key usageName day occurredAt metadata usedCreditsAfter heldCreditsAfter
  hold { id }
}"""
LIMITS = f"""
  ... on IdempotencyConflict {{ firstEntry {{ id kind }} }}
  ... on InsufficientCredits {{ available held openHolds {METER} }}
  ... on SpendCapExceeded {{ available held openHolds {METER} }}"""
NOT_OPEN = "... on HoldNotOpen { hold { id state closedAt } }"
ANSWERS = {
    "holdCredits": f"""
      ... on HoldCreditsSuccess {{ replayed refused hold {{ {HOLD} }} {METER} {ENTRY} }}
      ... on TooManyHolds {{ max }} {LIMITS}""",
    "commitHold": f"""
      ... on CommitHoldSuccess {{ replayed accepted refused overLimit hold {{ {HOLD} }} {METER} {ENTRY} }}
      {NOT_OPEN} {LIMITS}""",
    "releaseHold": f"... on ReleaseHoldSuccess {{ replayed released hold {{ {HOLD} }} {METER} }} {NOT_OPEN}",
    "extendHold": f"... on ExtendHoldSuccess {{ hold {{ {HOLD} }} {METER} }} {NOT_OPEN}",
    "recordUsage": LIMITS,
}


async def ask(caller: Caller, field: str, hold_id: str = "h", **values: Any) -> dict[str, Any]:
    """Run a mutation of the hold `h` of the meter `m`, unless the values say otherwise, and return what is answered."""
    name = "eventId" if field == "recordUsage" else "holdId"
    values = {"workspaceId": "w", "externalMeterId": "m", name: hold_id} | values
    return await caller.mutate(field, ANSWERS[field], **values)


def conflict(entry: str, kind: str) -> dict[str, Any]:
    return {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "message": "'h' was used before with other values.",
        "firstEntry": {"id": entry, "kind": kind},
    }


async def test_a_hold_and_its_commit_are_answered_whole(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="10", timezone="Pacific/Auckland")
    made = await ask(own, "holdCredits", amount="12", policy="PARTIAL", expiresInSeconds=60, metadata={"model": "m"})
    hold_id = f"hld_{meter_id.removeprefix('mtr_')}_2"
    hold = {
        "id": hold_id,
        "holdId": "h",
        "amount": "10",
        "requestedAmount": "12",
        "state": "OPEN",
        "committedAmount": None,
        "expiresAt": "2026-03-16T12:01:00Z",
        "createdAt": "2026-03-16T12:00:00Z",
        "closedAt": None,
        "metadata": {"model": "m"},
        "billingMeter": {"id": meter_id},
    }
    held = {"usedCredits": "0", "heldCredits": "10", "pinnedCredits": "10", "availableCredits": "0"}
    entry = {
        "id": entry_id(meter_id, 2),
        "kind": "HOLD",
        "amount": "10",
        "requestedAmount": "12",
        "policy": "PARTIAL",
        "key": "h",
        "usageName": None,
        "day": None,
        "occurredAt": "2026-03-16T12:00:00Z",
        "metadata": {"model": "m"},
        "usedCreditsAfter": "0",
        "heldCreditsAfter": "10",
        "hold": {"id": hold_id},
    }
    assert made == {
        "__typename": "HoldCreditsSuccess",
        "replayed": False,
        "refused": "2",
        "hold": hold,
        "billingMeter": held,
        "entry": entry,
    }
    own.clock.forward(seconds=30)
    extended = await ask(own, "extendHold", expiresInSeconds=60)
    hold |= {"expiresAt": "2026-03-16T12:01:30Z"}
    assert extended == {"__typename": "ExtendHoldSuccess", "hold": hold, "billingMeter": held}
    own.clock.forward(seconds=45)
    committed = await ask(
        own,
        "commitHold",
        amount="4",
        usageName="tokens",
        occurredAt="2026-03-16T10:59:59Z",
        metadata={"request": 7},
    )
    free = {"usedCredits": "4", "heldCredits": "0", "pinnedCredits": "0", "availableCredits": "6"}
    assert committed == {
        "__typename": "CommitHoldSuccess",
        "replayed": False,
        "accepted": "4",
        "refused": "0",
        "overLimit": False,
        "hold": hold | {"state": "COMMITTED", "committedAmount": "4", "closedAt": "2026-03-16T12:01:15Z"},
        "billingMeter": free,
        "entry": entry
        | {
            "id": entry_id(meter_id, 3),
            "kind": "USAGE",
            "amount": "4",
            "requestedAmount": "4",
            "usageName": "tokens",
            # A second before midnight there.
            "day": "2026-03-16",
            "occurredAt": "2026-03-16T10:59:59Z",
            "metadata": {"request": 7},
            "usedCreditsAfter": "4",
            "heldCreditsAfter": "0",
        },
    }
    assert (await meter_of(own))["usage"] == {("2026-03-16", "tokens"): 4}
    # Without a time it counts on the day of the commit, which there is the next one.
    await ask(own, "holdCredits", "g", amount="3")
    await ask(own, "commitHold", "g", amount="3")
    assert (await meter_of(own))["usage"] == {("2026-03-16", "tokens"): 4, ("2026-03-17", "default"): 3}
    await ask(own, "holdCredits", "r", amount="3")
    released = await ask(own, "releaseHold", "r")
    assert (released["released"], released["replayed"], released["hold"]["state"]) == ("3", False, "RELEASED")
    assert released["hold"]["committedAmount"] is None
    assert released["hold"]["closedAt"] == "2026-03-16T12:01:15Z"
    assert await disagreements(own.database, meter_id) == []


async def test_a_commit_of_0_is_answered_as_a_release(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6")
    answer = await ask(gateway, "commitHold", amount="0")
    assert (answer["accepted"], answer["refused"], answer["overLimit"], answer["replayed"]) == ("0", "0", False, False)
    assert (answer["hold"]["state"], answer["hold"]["committedAmount"]) == ("RELEASED", None)
    assert (answer["entry"]["id"], answer["entry"]["kind"]) == (entry_id(meter_id, 3), "RELEASE")
    async with unchanged(gateway):
        again = await ask(gateway, "commitHold", amount="0")
        assert again == answer | {"replayed": True}
        released = await ask(gateway, "releaseHold")
        assert (released["released"], released["replayed"], released["hold"]) == ("6", True, answer["hold"])


async def test_a_replay_has_the_first_entry_and_the_hold_as_it_now_is(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    values: dict[str, Any] = {"amount": "12", "policy": "PARTIAL", "expiresInSeconds": 60, "metadata": {"a": 1}}
    made = await ask(gateway, "holdCredits", **values)
    usage: dict[str, Any] = {
        "amount": "14",
        "usageName": "tokens",
        "occurredAt": "2026-03-16T11:00:00Z",
        "metadata": {"b": 2},
    }
    committed = await ask(gateway, "commitHold", **usage)
    assert (committed["accepted"], committed["refused"]) == ("10", "4")
    await must(gateway, "refillBillingMeter", refill="100")
    gateway.clock.forward(days=60)
    now = {"usedCredits": "10", "heldCredits": "0", "pinnedCredits": "0", "availableCredits": "100"}
    async with unchanged(gateway):
        again = await ask(gateway, "holdCredits", **values)
        assert again == made | {
            "replayed": True,
            "hold": committed["hold"],
            "billingMeter": now,
            "entry": made["entry"],
        }
        # Its time is long out of the window, which a replay does not ask for.
        writer = await gateway.caller(Scope.USAGE_WRITE, Scope.BILLING_READ)
        assert await ask(writer, "commitHold", **usage) == committed | {"replayed": True, "billingMeter": now}
        assert (await ask(gateway, "commitHold", **usage, ifClosed="RECORD"))["replayed"] is True
        others: tuple[dict[str, Any], ...] = (
            {"amount": "11"},
            {"policy": "REJECT"},
            {"expiresInSeconds": 61},
            {"metadata": {"a": 2}},
        )
        for other in others:
            assert await ask(gateway, "holdCredits", **values | other) == conflict(made["entry"]["id"], "HOLD")
        others = (
            {"amount": "10"},
            {"amount": "0"},
            {"policy": "FORCE"},
            {"usageName": "images"},
            {"occurredAt": "2026-03-16T11:00:01Z"},
            {"metadata": {}},
        )
        for other in others:
            answer = await ask(gateway, "commitHold", **usage | other)
            assert answer == conflict(committed["entry"]["id"], "USAGE")


async def test_an_id_is_a_holds_or_an_events(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    await ask(gateway, "recordUsage", amount="1")
    async with unchanged(gateway):
        assert await ask(gateway, "holdCredits", amount="1") == conflict(entry_id(meter_id, 2), "USAGE")
        for field, values in (
            ("commitHold", {"amount": "1"}),
            ("commitHold", {"amount": "1", "ifClosed": "RECORD"}),
            ("commitHold", {"amount": "0"}),
            ("releaseHold", {}),
            ("extendHold", {"expiresInSeconds": 60}),
        ):
            for hold_id in ("h", "missing"):
                assert await ask(gateway, field, hold_id, **values) == {
                    "__typename": "HoldNotFound",
                    "code": "HOLD_NOT_FOUND",
                    "message": f"The billing meter has no hold {hold_id!r}.",
                }
    await make_meter(gateway, "other", totalCredits="10")
    other = {"externalMeterId": "other"}
    # Another meter's ids are its own.
    await ask(gateway, "holdCredits", amount="1", **other)
    held = (await books_of(gateway, "other")).entries[1]
    async with unchanged(gateway, "other"):
        answer = await ask(gateway, "recordUsage", amount="1", **other)
        assert answer == conflict(entry_id(held.meter_id, 2), "HOLD")
        # A check of 0 has no id.
        assert (await ask(gateway, "recordUsage", amount="0", **other))["__typename"] == "RecordUsageSuccess"


async def test_a_hold_that_is_closed_says_how_and_since_when(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="30")
    ids = {
        name: (await ask(gateway, "holdCredits", name, amount="1", expiresInSeconds=60))["hold"]["id"]
        for name in ("committed", "released", "expired")
    }
    gateway.clock.forward(seconds=20)
    await ask(gateway, "commitHold", "committed", amount="1")
    await ask(gateway, "releaseHold", "released")
    gateway.clock.forward(seconds=3_600)
    await must(gateway, "refillBillingMeter", refill="1")
    async with unchanged(gateway):
        for name, field, values in (
            ("committed", "releaseHold", {}),
            ("committed", "extendHold", {"expiresInSeconds": 60}),
            ("released", "commitHold", {"amount": "1"}),
            ("released", "extendHold", {"expiresInSeconds": 60}),
            ("expired", "commitHold", {"amount": "1"}),
            ("expired", "commitHold", {"amount": "1", "policy": "FORCE"}),
            ("expired", "commitHold", {"amount": "0"}),
            ("expired", "releaseHold", {}),
            ("expired", "extendHold", {"expiresInSeconds": 60}),
        ):
            since = "12:01:00" if name == "expired" else "12:00:20"
            assert await ask(gateway, field, name, **values) == {
                "__typename": "HoldNotOpen",
                "code": "HOLD_NOT_OPEN",
                "message": f"The hold '{name}' is {name}, and no longer open.",
                "hold": {"id": ids[name], "state": name.upper(), "closedAt": f"2026-03-16T{since}Z"},
            }
        # The state comes before a time that is outside the window, and that before the limit.
        early = {"amount": "1000", "policy": "REJECT", "occurredAt": "1960-01-01T00:00:00Z"}
        answer = await ask(gateway, "commitHold", "expired", **early)
        assert answer["__typename"] == "HoldNotOpen"
        for record in ("expired", "released"):
            answer = await ask(gateway, "commitHold", record, **early, ifClosed="RECORD")
            assert answer == {
                "__typename": "InvalidInput",
                "code": "INVALID_INPUT",
                "message": "occurredAt must not be before 1970.",
                "field": ["input", "occurredAt"],
            }


async def test_a_commit_is_in_the_time_window_of_usage(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6")
    writer = await gateway.caller(Scope.USAGE_WRITE)
    async with unchanged(gateway):
        for occurred_at, rule in (
            ("2026-03-16T12:05:00.000001Z", "must be at most 5 minutes ahead."),
            ("2026-02-09T11:59:59Z", "must be at most 35 days ago; older ones need the scope usage:correct."),
        ):
            # It comes before the limit.
            answer = await ask(writer, "commitHold", amount="1000", policy="REJECT", occurredAt=occurred_at)
            assert answer == {
                "__typename": "InvalidInput",
                "code": "INVALID_INPUT",
                "message": f"occurredAt {rule}",
                "field": ["input", "occurredAt"],
            }
    committed = await ask(gateway, "commitHold", amount="6", occurredAt="2026-02-09T11:59:59Z")
    assert committed["entry"]["day"] == "2026-02-09"


async def test_an_extension_ends_at_most_24_hours_after_the_hold_was_made(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6", expiresInSeconds=86_400)
    gateway.clock.forward(seconds=0.000001)
    async with unchanged(gateway):
        for seconds in (86_400, 86_400):
            assert await ask(gateway, "extendHold", expiresInSeconds=seconds) == {
                "__typename": "InvalidInput",
                "code": "INVALID_INPUT",
                "message": "expiresInSeconds must end at most 24 hours after the hold was made.",
                "field": ["input", "expiresInSeconds"],
            }
        kept = await ask(gateway, "extendHold", expiresInSeconds=86_399)
        assert kept["hold"]["expiresAt"] == "2026-03-17T12:00:00Z"


async def test_a_refusal_says_what_is_reserved(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", "a", amount="4")
    await ask(gateway, "holdCredits", "b", amount="3")
    meter = {"usedCredits": "0", "heldCredits": "7", "pinnedCredits": "7", "availableCredits": "3"}
    refusal = {"available": "3", "held": "7", "openHolds": 2, "billingMeter": meter}
    insufficient = {"__typename": "InsufficientCredits", "code": "INSUFFICIENT_CREDITS"} | refusal
    async with unchanged(gateway):
        for field, hold_id, amount in (("recordUsage", "e", "5"), ("holdCredits", "c", "5"), ("commitHold", "a", "9")):
            assert await ask(gateway, field, hold_id, amount=amount, policy="REJECT") == insufficient | {
                "message": "5 credits are asked for and 3 are available; 7 are on hold."
            }
    await must(gateway, "updateBillingMeter", allowOverages=True, spendCap="2")
    meter |= {"availableCredits": "5"}
    exceeded = {"__typename": "SpendCapExceeded", "code": "SPEND_CAP_EXCEEDED"} | refusal | {"available": "5"}
    async with unchanged(gateway):
        for field, hold_id, amount in (("recordUsage", "e", "6"), ("holdCredits", "c", "6"), ("commitHold", "a", "10")):
            assert await ask(gateway, field, hold_id, amount=amount, policy="REJECT") == exceeded | {
                "message": "6 credits are asked for and 5 are available; 7 are on hold."
            }


@pytest.mark.slow
async def test_a_meter_has_at_most_so_many_open_holds(migrated_url: str) -> None:
    async with gateway_on(migrated_url, max_open_holds=3) as gateway:
        walk = Walk(gateway)
        await walk.take("meter 10; hold a 1; hold b 1 60s; hold c 1")
        async with unchanged(gateway):
            answer = await ask(gateway, "holdCredits", amount="1")
        assert answer == {
            "__typename": "TooManyHolds",
            "code": "TOO_MANY_HOLDS",
            "message": "The billing meter may have at most 3 open holds.",
            "max": 3,
        }
        # A replay and a conflict come before it, and the limit after it.
        assert await walk.take("hold a 1; hold a 2; hold d 1000") == "replayed; IdempotencyConflict; TooManyHolds 3"
        # What is closed does not count.
        assert await walk.take("release a; hold d 1; hold e 1") == "RELEASE 1 a; HOLD 1 d: base 1; TooManyHolds 3"
        assert (
            await walk.take("commit c 1; hold e 1; hold f 1") == "USAGE 1 c: base 1; HOLD 1 e: base 1; TooManyHolds 3"
        )
        assert await walk.take("wait 60; hold f 1; hold g 1") == "HOLD_EXPIRY 1 b; HOLD 1 f: base 1; TooManyHolds 3"
        # Debits are not limited by it.
        assert await walk.take("use x 1") == "USAGE 1: base 1"
        # A meter's own is lower, or the operator's holds.
        for most, limit in ((1, 1), (2, 2), (5, 3)):
            await must(gateway, "updateBillingMeter", maxOpenHolds=most)
            assert await walk.take("hold g 1") == f"TooManyHolds {limit}"
        await must(gateway, "updateBillingMeter", maxOpenHolds=1)
        # Those that are open stay, also where they are more than may be opened.
        assert await walk.take("commit d 1; extend e 80s; release e; hold g 1; release f; hold g 1; hold x 1") == (
            "USAGE 1 d: base 1; RELEASE 1 e; TooManyHolds 1; RELEASE 1 f; HOLD 1 g: base 1; IdempotencyConflict"
        )
        await must(gateway, "updateBillingMeter", removeMaxOpenHolds=True)
        assert await walk.take("hold h 1; hold i 1; hold j 1") == "HOLD 1 h: base 1; HOLD 1 i: base 1; TooManyHolds 3"
        await walk.check()


async def test_a_meters_own_limit_of_open_holds_is_a_setting(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="10", maxOpenHolds=2)
    query = """{ billingMeter(workspaceId: "w", externalMeterId: "m") { maxOpenHolds
      ledger(first: 1) { nodes { kind metadata } } } }"""
    assert (await own.data(query))["billingMeter"]["maxOpenHolds"] == 2
    walk = Walk(own)
    assert await walk.take("hold a 1; hold b 1; hold c 1") == "HOLD 1 a: base 1; HOLD 1 b: base 1; TooManyHolds 2"
    for values, most, changed in (
        ({"maxOpenHolds": 3}, 3, ["2", "3"]),
        ({"removeMaxOpenHolds": True}, None, ["3", None]),
    ):
        await must(own, "updateBillingMeter", **values)
        assert (await own.data(query))["billingMeter"] == {
            "maxOpenHolds": most,
            "ledger": {"nodes": [{"kind": "SETTINGS", "metadata": {"maxOpenHolds": changed}}]},
        }
    async with unchanged(own):
        await must(own, "updateBillingMeter", removeMaxOpenHolds=True)
    assert await disagreements(own.database, meter_id) == []


async def test_used_and_held_never_pass_the_greatest_amount(gateway: Gateway) -> None:
    walk = Walk(gateway)
    greatest = 2**63 - 1
    await walk.take(f"meter 0 overages; hold h {greatest - 5}; use e 3")
    out_of_range = {
        "__typename": "AmountOutOfRange",
        "code": "AMOUNT_OUT_OF_RANGE",
        "message": "The meter's used credits would pass 9223372036854775807, the greatest amount.",
    }
    async with unchanged(gateway):
        assert await ask(gateway, "holdCredits", "g", amount="3") == out_of_range
        assert await ask(gateway, "holdCredits", "g", amount="3", policy="PARTIAL") == out_of_range
        assert await ask(gateway, "recordUsage", "f", amount="3", policy="FORCE") == out_of_range
        for policy in ("REJECT", "PARTIAL", "FORCE"):
            # The hold stays open.
            assert await ask(gateway, "commitHold", amount=str(greatest - 2), policy=policy) == out_of_range
    assert await walk.take(f"hold g 2; commit h {greatest - 5}; release g; use f 2; use x 1") == (
        f"HOLD 2 g; USAGE {greatest - 5} h; RELEASE 2 g; USAGE 2; AmountOutOfRange"
    )
    await walk.check()


async def test_a_hold_of_no_meter_or_of_anothers_is_refused(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6")
    strangers = [
        await gateway.caller(org_id=f"{gateway.org_id}-other"),
        await gateway.caller(environment=Environment.LIVE),
    ]
    elsewhere = await gateway.caller(workspaces=["elsewhere"])
    fields: tuple[tuple[str, dict[str, Any]], ...] = (
        ("holdCredits", {"amount": "6"}),
        ("commitHold", {"amount": "6"}),
        ("commitHold", {"amount": "0", "ifClosed": "RECORD"}),
        ("releaseHold", {}),
        ("extendHold", {"expiresInSeconds": 60}),
    )
    async with unchanged(gateway):
        for field, values in fields:
            for caller in strangers:
                assert await ask(caller, field, **values) == {
                    "__typename": "BillingMeterNotFound",
                    "code": "BILLING_METER_NOT_FOUND",
                    "message": "There is no billing meter 'm' in workspace 'w'.",
                }
            name = field[0].upper() + field[1:]
            document = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename }} }}"
            names = {"workspaceId": "w", "externalMeterId": "m", "holdId": "h"}
            error = await elsewhere.error(document, {"input": names | values})
            assert error["message"] == "The key is limited to other workspaces than 'w'."
            assert error["extensions"] == {"code": "FORBIDDEN"}


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope is not Scope.USAGE_WRITE])
async def test_holds_want_the_scope_usage_write(gateway: Gateway, scope: Scope) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6")
    caller = await gateway.caller(scope)
    names = {"workspaceId": "w", "externalMeterId": "m", "holdId": "h"}
    async with unchanged(gateway):
        for field, values in (
            ("holdCredits", {"amount": "6"}),
            ("commitHold", {"amount": "6"}),
            ("releaseHold", {}),
            ("extendHold", {"expiresInSeconds": 60}),
        ):
            name = field[0].upper() + field[1:]
            document = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename }} }}"
            error = await caller.error(document, {"input": names | values})
            assert error["message"] == "The key lacks the scope usage:write."
            assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_a_forced_commit_wants_the_scope_usage_correct(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    await ask(gateway, "holdCredits", amount="6")
    writer = await gateway.caller(Scope.USAGE_WRITE)
    document = "mutation ($input: CommitHoldInput!) { commitHold(input: $input) { __typename } }"
    values = {"workspaceId": "w", "externalMeterId": "m", "holdId": "h", "amount": "11", "policy": "FORCE"}
    async with unchanged(gateway):
        # Also where it would take no more than is held.
        for amount in ("11", "6", "0"):
            error = await writer.error(document, {"input": values | {"amount": amount}})
            assert error["message"] == "The key lacks the scope usage:correct."
            assert error["extensions"] == {"code": "FORBIDDEN"}
    corrector = await gateway.caller(Scope.USAGE_WRITE, Scope.USAGE_CORRECT)
    assert await corrector.data(document, {"input": values}) == {"commitHold": {"__typename": "CommitHoldSuccess"}}


async def test_one_that_may_write_alone_holds_and_commits_and_reads_nothing(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway, totalCredits="10")
    writer = await gateway.caller(Scope.USAGE_WRITE)
    names = {"workspaceId": "w", "externalMeterId": "m", "holdId": "h"}
    made = await writer.mutate(
        "holdCredits", "... on HoldCreditsSuccess { hold { id state } entry { kind amount } }", **names, amount="6"
    )
    hold_id = f"hld_{meter_id.removeprefix('mtr_')}_2"
    assert made["hold"] == {"id": hold_id, "state": "OPEN"}
    assert made["entry"] == {"kind": "HOLD", "amount": "6"}
    committed = await writer.mutate("commitHold", "... on CommitHoldSuccess { accepted }", **names, amount="6")
    assert committed["accepted"] == "6"
    error = await writer.error("query ($id: ID!) { node(id: $id) { id } }", {"id": hold_id})
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_one_document_holds_commits_and_releases_in_its_order(gateway: Gateway) -> None:
    await make_meter(gateway, totalCredits="10")
    of = 'workspaceId: "w", externalMeterId: "m", holdId'
    data = await gateway.data(
        f"""mutation {{
          a: holdCredits(input: {{{of}: "a", amount: 6}}) {{ ...held }}
          again: holdCredits(input: {{{of}: "a", amount: "6"}}) {{ ...held }}
          other: holdCredits(input: {{{of}: "a", amount: 7}}) {{ ...held }}
          b: holdCredits(input: {{{of}: "b", amount: 5, policy: PARTIAL}}) {{ ...held }}
          extended: extendHold(input: {{{of}: "b", expiresInSeconds: 1000}}) {{
            ... on ExtendHoldSuccess {{ hold {{ expiresAt }} }}
          }}
          commitA: commitHold(input: {{{of}: "a", amount: 8}}) {{ ...committed }}
          commitAgain: commitHold(input: {{{of}: "a", amount: 8}}) {{ ...committed }}
          releaseB: releaseHold(input: {{{of}: "b"}}) {{ ... on ReleaseHoldSuccess {{ released }} }}
          late: commitHold(input: {{{of}: "b", amount: 1, ifClosed: RECORD}}) {{ ...committed }}
        }}
        fragment held on HoldCreditsResult {{
          __typename ... on HoldCreditsSuccess {{ replayed refused }}
        }}
        fragment committed on CommitHoldResult {{
          ... on CommitHoldSuccess {{ replayed accepted refused hold {{ state }} }}
        }}"""
    )
    held = {"__typename": "HoldCreditsSuccess", "replayed": False, "refused": "0"}
    committed = {"replayed": False, "accepted": "6", "refused": "2", "hold": {"state": "COMMITTED"}}
    assert data == {
        "a": held,
        "again": held | {"replayed": True},
        "other": {"__typename": "IdempotencyConflict"},
        "b": held | {"refused": "1"},
        "extended": {"hold": {"expiresAt": "2026-03-16T12:16:40Z"}},
        "commitA": committed,
        "commitAgain": committed | {"replayed": True},
        "releaseB": {"released": "4"},
        "late": {"replayed": False, "accepted": "1", "refused": "0", "hold": {"state": "RELEASED"}},
    }
