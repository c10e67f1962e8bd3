"""Holds: what they reserve, what becomes of them, and what is refused."""

import pytest

from tests.conftest import Gateway
from tests.credit_walks import Walk

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
