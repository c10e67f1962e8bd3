"""Credit grants: the order of use, what becomes of them, what a void gives back, and what is refused."""

from typing import Any

import pytest

from resolvers.actor import Scope
from storage.tenants import Environment
from tests.conftest import Caller, Gateway, gateway_on
from tests.credit_walks import Walk
from tests.steps import disagreements, entry_id, make_grant, make_meter, must, unchanged

# The order of use.


@pytest.mark.parametrize(
    ("grants", "order"),
    [
        # Priority, the lower first; the base has 50.
        ("grant a 10 p51; grant b 10 p49", "b 10, base 10, a 10"),
        ("grant a 10 p100 60s promo; grant b 10 p0", "b 10, base 10, a 10"),
        ("grant a 10 p60 60s promo; grant b 10", "base 10, b 10, a 10"),
        # Then the earlier end, before the category; none is last.
        ("grant a 10 120s; grant b 10 60s", "b 10, a 10, base 10"),
        ("grant a 10 60s; grant b 10 120s promo", "a 10, b 10, base 10"),
        ("grant a 10 promo; grant b 10 60s", "b 10, a 10, base 10"),
        # Then promotional before paid.
        ("grant a 10 promo", "a 10, base 10"),
        ("grant a 10 60s; grant b 10 60s promo", "b 10, a 10, base 10"),
        # Then the older; the base is older than all.
        ("grant a 10", "base 10, a 10"),
        ("grant a 10; grant b 10", "base 10, a 10, b 10"),
        ("grant a 10 promo; grant b 10 promo", "a 10, b 10, base 10"),
        ("grant a 10; refill 5", "base 15, a 10"),
        (
            "grant a 10 60s; grant b 10 60s promo; grant c 10 promo; grant d 10 p20; grant e 10 60s",
            "d 10, b 10, a 10, e 10, c 10, base 10",
        ),
        # As they are now, whatever they were made with.
        ("grant a 10; grant b 10; update b p49", "b 10, base 10, a 10"),
        ("grant a 10 60s; grant b 10 90s; update a 120s", "b 10, a 10, base 10"),
        ("grant a 10 60s; update a endless", "base 10, a 10"),
        ("grant a 10 p10; update a p50 60s", "a 10, base 10"),
        # What is open alone.
        ("grant a 10 p10; use x 4; grant b 10 p5; hold h 3; revoke b 2", "b 5, a 6, base 10"),
    ],
)
async def test_credits_are_used_in_the_order_of_use(gateway: Gateway, grants: str, order: str) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 10; {grants}")
    assert await walk.burn_down() == order
    left = [int(step.split()[1]) for step in order.split(", ")]
    drawn: dict[str, int] = {}
    # Steps that end within a grant as well as at its end.
    for number, amount in enumerate([3, 7, *[6] * ((sum(left) - 10) // 6), (sum(left) - 10) % 6]):
        if amount:
            usage, draws = (await walk.take(f"use e{number} {amount}")).split(": ")
            assert usage == f"USAGE {amount}"
            for draw in draws.split(", "):
                name, credits_ = draw.split()
                drawn[name] = drawn.get(name, 0) + int(credits_)
    # Names are kept in the order in which they first came.
    assert ", ".join(f"{name} {credits_}" for name, credits_ in drawn.items()) == order
    assert await walk.burn_down() == ""
    assert await walk.take("use last 1") == "InsufficientCredits available 0, held " + (
        "3 by 1" if "hold" in grants else "0 by 0"
    )
    await walk.check()


async def test_a_debit_draws_across_grants(gateway: Gateway) -> None:
    walk = Walk(gateway)
    await walk.take("meter 10; grant a 10 p10; grant b 10 p90")
    assert await walk.take("use e 7; use f 7; use g 7; use h 9") == (
        "USAGE 7: a 7; USAGE 7: a 3, base 4; USAGE 7: base 6, b 1; USAGE 9: b 9"
    )


# What becomes of a grant.


@pytest.mark.parametrize(
    ("steps", "states"),
    [
        ("grant a 10", "a LIVE open 10"),
        ("grant a 10; use e 4", "a LIVE open 6 drawn 4"),
        ("grant a 10; use e 10", "a DEPLETED drawn 10"),
        ("grant a 10; use e 10; void e 1", "a LIVE open 1 drawn 9"),
        ("grant a 10; hold h 10", "a LIVE pinned 10; h OPEN"),
        ("grant a 10; hold h 10; commit h 10", "a DEPLETED drawn 10; h COMMITTED 10"),
        ("grant a 10 60s; use e 4; wait 59.999999", "a LIVE open 6 drawn 4"),
        ("grant a 10 60s; use e 4; wait 60", "a EXPIRED drawn 4 expired 6"),
        ("grant a 10 60s; use e 10; wait 60", "a EXPIRED drawn 10"),
        ("grant a 10 60s; hold h 4; wait 60", "a EXPIRED pinned 4 expired 6; h OPEN"),
        ("grant a 10 60s; hold h 4; wait 60; commit h 3", "a EXPIRED drawn 3 expired 7; h COMMITTED 3"),
        ("grant a 10; revoke a", "a REVOKED revoked 10"),
        ("grant a 10; revoke a 4", "a LIVE open 6 revoked 4"),
        ("grant a 10; revoke a 10", "a DEPLETED revoked 10"),
        ("grant a 10; use e 6; revoke a 10", "a DEPLETED drawn 6 revoked 4"),
        ("grant a 10; use e 6; revoke a 10; void e", "a LIVE open 6 revoked 4"),
        ("grant a 10; use e 4; revoke a", "a REVOKED drawn 4 revoked 6"),
        ("grant a 10; hold h 4; revoke a", "a REVOKED pinned 4 revoked 6; h OPEN"),
        ("grant a 10; hold h 4; revoke a; release h", "a REVOKED revoked 10; h RELEASED"),
        ("grant a 10 60s; revoke a; wait 60", "a REVOKED revoked 10"),
        # One that has ended can still be closed, which takes nothing; a part of it stays with its end.
        ("grant a 10 60s; wait 60; revoke a", "a REVOKED expired 10"),
        ("grant a 10 60s; wait 60; revoke a 3", "a EXPIRED expired 10"),
        # It pays what was used before it: that is drawn, too.
        ("overages on; use e 4; grant a 10", "a LIVE open 6 drawn 4"),
        ("overages on; use e 40; grant a 10", "a DEPLETED drawn 10"),
        ("overages on; use e 40; grant a 10; grant b 100", "a DEPLETED drawn 10; b LIVE open 70 drawn 30"),
        # Its end can be moved while it lives.
        ("grant a 10 60s; wait 59; update a 60s; wait 59", "a LIVE open 10"),
        ("grant a 10 60s; wait 59; update a endless; wait 5000", "a LIVE open 10"),
        ("grant a 10; update a 60s; wait 60", "a EXPIRED expired 10"),
    ],
)
async def test_a_grant_has_the_state_that_its_credits_give_it(gateway: Gateway, steps: str, states: str) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 0; {steps}")
    assert await walk.states() == states
    # The same once what is due is written.
    await walk.take("refill 1")
    assert await walk.states() == states
    await walk.check()


@pytest.mark.parametrize(
    ("before", "step", "entries"),
    [
        ("grant a 10", "revoke a 4", "REVOCATION 4 a"),
        ("grant a 10", "revoke a 12", "REVOCATION 10 of 12 a"),
        ("grant a 10", "revoke a", "REVOCATION 10 a"),
        ("grant a 10; use e 10", "revoke a", "REVOCATION 0 a"),
        ("grant a 10; revoke a", "revoke a", "REVOCATION 0 a"),
        ("grant a 10; revoke a", "revoke a 3", "REVOCATION 0 of 3 a"),
        ("grant a 10 60s; wait 60", "revoke a 3", "EXPIRY 10 a; REVOCATION 0 of 3 a"),
        ("grant a 10; hold h 4", "revoke a", "REVOCATION 6 a"),
        ("grant a 10; hold h 4; revoke a", "release h", "RELEASE 4 h; REVOCATION 4 a"),
        ("grant a 10; hold h 4; revoke a", "commit h 1", "USAGE 1 h: a 1; REVOCATION 3 a"),
        ("grant a 10; update a p50", "update a p50", ""),
        ("grant a 10", "update a p40 60s", "GRANT_CHANGED 0 a"),
        ("grant a 10 60s", "update a 60s", ""),
        ("grant a 10; revoke a", "update a p40", "CreditGrantNotLive REVOKED"),
        ("grant a 10 60s; wait 60", "update a p40", "EXPIRY 10 a; CreditGrantNotLive EXPIRED"),
        ("grant a 10; use e 10", "update a p40", "GRANT_CHANGED 0 a"),
        # Not live comes before an end that is past.
        ("grant a 10; revoke a", "update a 0s", "CreditGrantNotLive REVOKED"),
        ("grant a 10", "update a 0s", "InvalidInput expiresAt"),
        # What is due is written whatever comes of the command.
        ("grant a 10 60s; wait 60", "use e 1", "EXPIRY 10 a; InsufficientCredits available 0, held 0 by 0"),
        # Its own moment is the last of nothing: it cannot be drawn at its end.
        ("grant a 10 60s; wait 59.999999", "use e 10", "USAGE 10: a 10"),
        # At one moment holds expire in the order in which they were made, then grants in the order of use.
        ("grant a 10 60s; grant b 10 60s p10; wait 60", "refill 1", "EXPIRY 10 b; EXPIRY 10 a; REFILL 1"),
        (
            "grant a 10 60s; hold g 2 60s; hold f 3 60s; wait 60",
            "refill 1",
            "HOLD_EXPIRY 2 g; HOLD_EXPIRY 3 f; EXPIRY 10 a; REFILL 1",
        ),
        # At several each at its own.
        (
            "grant a 10 60s; grant b 10 30s; hold h 15 45s; wait 90",
            "refill 1",
            "HOLD_EXPIRY 15 h; EXPIRY 10 b; EXPIRY 10 a; REFILL 1",
        ),
    ],
)
async def test_what_a_grant_writes(gateway: Gateway, before: str, step: str, entries: str) -> None:
    walk = Walk(gateway)
    await walk.take(f"meter 0; {before}")
    assert await walk.take(step) == entries
    await walk.check()


async def test_an_expiry_is_booked_at_its_own_moment(own: Gateway) -> None:
    walk = Walk(own)
    await walk.take("meter 5; grant a 10 60s; grant b 10 120s; wait 300; refill 1")
    data = await own.data(
        """{ billingMeter(workspaceId: "w", externalMeterId: "m") { ledger { nodes {
          kind amount recordedAt occurredAt recordedBy key reason totalCreditsAfter heldCreditsAfter
        } } } }"""
    )
    booked = [entry for entry in data["billingMeter"]["ledger"]["nodes"] if entry["kind"] == "EXPIRY"][::-1]
    assert booked == [
        {
            "kind": "EXPIRY",
            "amount": "10",
            "recordedAt": moment,
            "occurredAt": moment,
            "recordedBy": "tollgate",
            "key": None,
            "reason": None,
            "totalCreditsAfter": total,
            "heldCreditsAfter": "0",
        }
        for moment, total in (("2026-03-16T12:01:00Z", "15"), ("2026-03-16T12:02:00Z", "5"))
    ]


# What a void gives back.


@pytest.mark.parametrize(
    ("before", "voids", "entries"),
    [
        # Its draws from the last to the first, also of a part, and of what is left of one.
        ("meter 10; grant a 10 p10; use e 15", "void e 3", "VOID 3: base 3"),
        ("meter 10; grant a 10 p10; use e 15; void e 3", "void e 7", "VOID 7: base 2, a 5"),
        ("meter 10; grant a 10 p10; use e 15; void e 3; void e 7", "void e", "VOID 5: a 5"),
        ("meter 10; grant a 10 p10; use e 15", "void e", "VOID 15: base 5, a 10"),
        ("meter 10; grant a 10 p10; use e 15; void e 14", "void e 2", "ExceedsVoidable 1"),
        # In the order in which they were drawn, whatever has changed on the grants since.
        ("meter 0; grant a 5 p10; grant b 5 p20; use e 8; update b p1", "void e 4", "VOID 4: b 3, a 1"),
        # An event from before the first grant drew the base.
        ("meter 10; use e 6; grant a 5 p10", "void e 2", "VOID 2: base 2"),
        # To a grant that can no longer be used.
        ("meter 0; grant a 10 60s; use e 10; wait 60", "void e 4", "VOID 4: a 4; EXPIRY 4 a"),
        ("meter 0; grant a 10 60s; use e 7; wait 60", "void e 4", "EXPIRY 3 a; VOID 4: a 4; EXPIRY 4 a"),
        ("meter 0; grant a 10; use e 10; revoke a", "void e 4", "VOID 4: a 4; REVOCATION 4 a"),
        ("meter 0; grant a 10 60s; use e 10; revoke a; wait 60", "void e 4", "VOID 4: a 4; REVOCATION 4 a"),
        ("meter 0; grant a 10; use e 6; revoke a 4", "void e", "VOID 6: a 6"),
        (
            "meter 0; grant a 5 60s; grant b 5 60s p60; use e 10; wait 60",
            "void e",
            # They came back from the last to the first, and ended in the order of use.
            "VOID 10: b 5, a 5; EXPIRY 5 a; EXPIRY 5 b",
        ),
        # What no credit had paid comes first: what still is uncovered, which goes back to nobody.
        ("meter 0 overages; use e 10; grant a 4", "void e 6", "VOID 6"),
        # Then what grants have covered since, the newest first.
        ("meter 0 overages; use e 10; grant a 4", "void e 7; void e", "VOID 7: a 1; VOID 3: a 3"),
        ("meter 0 overages; use e 10; grant a 4; grant b 4", "void e", "VOID 10: b 4, a 4"),
        (
            "meter 0 overages; use e 10; grant a 4 p90; grant b 4 p10",
            "void e 3; void e",
            "VOID 3: b 1; VOID 7: b 3, a 4",
        ),
        # Then what the base has.
        ("meter 0 overages; use e 10; grant a 4; refill 6", "void e", "VOID 10: a 4, base 6"),
        ("meter 0 overages; use e 10; refill 6; grant a 4", "void e 9", "VOID 9: a 4, base 5"),
        # Then its draws.
        (
            "meter 5 overages; grant a 3 p10; use e 12; grant b 10",
            "void e 6; void e",
            "VOID 6: b 4, base 2; VOID 6: base 3, a 3",
        ),
        ("meter 5; grant a 5; use e 15 FORCE", "void e 7", "VOID 7: a 2"),
        # Whichever event a grant has covered, its credits go back with what is voided later.
        ("meter 0 overages; use e 5; use f 5; grant a 5", "void e; void f", "VOID 5; VOID 5: a 5"),
        # A grant that covered and has ended gets it back, and ends again.
        ("meter 0 overages; use e 10; grant a 4 60s; wait 60", "void e", "VOID 10: a 4; EXPIRY 4 a"),
        ("meter 0 overages; use e 10; grant a 4; revoke a", "void e", "VOID 10: a 4; REVOCATION 4 a"),
        # Of a hold's usage, by the hold's id; what was pinned of an ended grant is gone when it comes back.
        ("meter 10; grant a 5 60s; hold h 8; wait 60; commit h 8", "void h 4", "VOID 4: base 3, a 1; EXPIRY 1 a"),
        ("meter 10; hold h 8; release h; commit h 8 RECORD", "void h 3", "VOID 3: base 3"),
        ("meter 10; hold h 8", "void h 3", "UsageEventNotFound"),
        ("meter 10; hold h 8; release h", "void h 3", "UsageEventNotFound"),
    ],
)
async def test_a_void_gives_back_to_where_it_came_from(gateway: Gateway, before: str, voids: str, entries: str) -> None:
    walk = Walk(gateway)
    await walk.take(before)
    assert await walk.take(voids) == entries
    await walk.check()


@pytest.mark.parametrize(
    ("steps", "burn_down", "meter"),
    [
        # What comes back pays what is uncovered, in the order of use.
        (
            "meter 5 overages; grant a 1; use e 6; use f 3; void e",
            "base 2, a 1",
            "total 6, used 3, available None",
        ),
        # What comes back to an ended grant pays nothing, and its expiry leaves as much uncovered as there was.
        (
            "meter 0 overages; grant a 5 60s; use e 5; use f 3; wait 60; void e 4",
            "",
            "total 1, used 4, overage 3, available None",
        ),
        (
            "meter 0 overages; grant a 5; use e 5; use f 3; revoke a; void e 4",
            "",
            "total 1, used 4, overage 3, available None",
        ),
        # A new grant pays what is uncovered, and an ended one never does.
        ("meter 3 overages; use e 10; grant a 5", "", "total 8, used 10, overage 2, available None"),
        ("meter 3 overages; use e 10; grant a 5; grant b 5", "b 3", "total 13, used 10, available None"),
        # The overage may rise when a hold frees credit of a grant that has ended.
        (
            "meter 0 overages; grant a 5 60s; hold h 5; use e 3; wait 60",
            "",
            "total 5, used 3, held 5, pinned 5, available None",
        ),
        (
            "meter 0 overages; grant a 5 60s; hold h 5; use e 3; wait 60; release h",
            "",
            "total 0, used 3, overage 3, available None",
        ),
        # A cap is beside what is granted, so each grant can be spent whole.
        ("meter 0 overages cap 5; use e 5; grant a 10", "a 5", "total 10, used 5, available 10"),
    ],
)
async def test_what_is_uncovered_is_paid_in_the_order_of_use(
    gateway: Gateway, steps: str, burn_down: str, meter: str
) -> None:
    walk = Walk(gateway)
    await walk.take(steps)
    assert await walk.burn_down() == burn_down
    assert await walk.meter() == meter
    await walk.check()


# What is answered, and what is refused.

GRANT = """id amount openCredits pinnedCredits drawnCredits expiredCredits revokedCredits priority category expiresAt
  state createdAt reason metadata billingMeter { id }"""
CONFLICT = "... on IdempotencyConflict { firstEntry { id kind } }"
ANSWERS = {
    "grantCredits": f"""
      ... on GrantCreditsSuccess {{
        replayed creditGrant {{ {GRANT} }} billingMeter {{ totalCredits }} entry {{ id kind key reason metadata }}
      }}
      ... on TooManyCreditGrants {{ max }} {CONFLICT}""",
    "updateCreditGrant": f"""
      ... on UpdateCreditGrantSuccess {{
        creditGrant {{ {GRANT} }} billingMeter {{ totalCredits }} entry {{ id kind key reason metadata }}
      }}
      ... on CreditGrantNotLive {{ creditGrant {{ id state }} }}""",
    "revokeCreditGrant": f"""
      ... on RevokeCreditGrantSuccess {{
        replayed revoked shortfall creditGrant {{ {GRANT} }} billingMeter {{ totalCredits }}
        entry {{ id kind key reason metadata }}
      }} {CONFLICT}""",
}


async def ask(caller: Caller, field: str, **values: Any) -> dict[str, Any]:
    """Run a mutation of grants, of the meter `m` unless the values have an id, and return what is answered."""
    names = {} if "id" in values else {"workspaceId": "w", "externalMeterId": "m"}
    return await caller.mutate(field, ANSWERS[field], **names | values)


def conflict(key: str, entry: str, kind: str) -> dict[str, Any]:
    return {
        "__typename": "IdempotencyConflict",
        "code": "IDEMPOTENCY_CONFLICT",
        "message": f"{key!r} was used before with other values.",
        "firstEntry": {"id": entry, "kind": kind},
    }


NOT_FOUND = {
    "__typename": "CreditGrantNotFound",
    "code": "CREDIT_GRANT_NOT_FOUND",
    "message": "There is no credit grant of this id.",
}


async def test_a_grant_is_answered_whole(own: Gateway) -> None:
    meter_id = await make_meter(own, totalCredits="5")
    made = await ask(
        own,
        "grantCredits",
        amount="20",
        priority=10,
        category="PROMOTIONAL",
        expiresAt="2026-04-01T00:00:00+02:00",
        reason="a welcome",
        metadata={"campaign": "spring"},
        idempotencyKey="k",
    )
    grant_id = f"grt_{meter_id.removeprefix('mtr_')}_2"
    grant = {
        "id": grant_id,
        "amount": "20",
        "openCredits": "20",
        "pinnedCredits": "0",
        "drawnCredits": "0",
        "expiredCredits": "0",
        "revokedCredits": "0",
        "priority": 10,
        "category": "PROMOTIONAL",
        "expiresAt": "2026-03-31T22:00:00Z",
        "state": "LIVE",
        "createdAt": "2026-03-16T12:00:00Z",
        "reason": "a welcome",
        "metadata": {"campaign": "spring"},
        "billingMeter": {"id": meter_id},
    }
    assert made == {
        "__typename": "GrantCreditsSuccess",
        "replayed": False,
        "creditGrant": grant,
        "billingMeter": {"totalCredits": "25"},
        "entry": {
            "id": entry_id(meter_id, 2),
            "kind": "GRANT",
            "key": "k",
            "reason": "a welcome",
            "metadata": {
                "priority": [None, 10],
                "category": [None, "PROMOTIONAL"],
                "expiresAt": [None, "2026-03-31T22:00:00+00:00"],
            },
        },
    }
    own.clock.forward(seconds=1)
    changed = await ask(
        own, "updateCreditGrant", id=grant_id, priority=20, expiresAt="2026-05-01T00:00:00Z", reason="a longer spring"
    )
    assert changed == {
        "__typename": "UpdateCreditGrantSuccess",
        "creditGrant": grant | {"priority": 20, "expiresAt": "2026-05-01T00:00:00Z"},
        "billingMeter": {"totalCredits": "25"},
        "entry": {
            "id": entry_id(meter_id, 3),
            "kind": "GRANT_CHANGED",
            "key": None,
            "reason": "a longer spring",
            "metadata": {
                "priority": [10, 20],
                "expiresAt": ["2026-03-31T22:00:00+00:00", "2026-05-01T00:00:00+00:00"],
            },
        },
    }
    # What it is already is no change.
    async with unchanged(own):
        again = await ask(own, "updateCreditGrant", id=grant_id, priority=20, reason="once more")
        assert again == changed | {"entry": None}
    endless = await ask(own, "updateCreditGrant", id=grant_id, removeExpiry=True)
    assert endless["creditGrant"] == grant | {"priority": 20, "expiresAt": None}
    assert endless["entry"]["metadata"] == {"expiresAt": ["2026-05-01T00:00:00+00:00", None]}
    revoked = await ask(own, "revokeCreditGrant", id=grant_id, amount="30", reason="a mistake", idempotencyKey="r")
    assert revoked == {
        "__typename": "RevokeCreditGrantSuccess",
        "replayed": False,
        "revoked": "20",
        "shortfall": "10",
        "creditGrant": grant
        | {"priority": 20, "expiresAt": None, "openCredits": "0", "revokedCredits": "20", "state": "DEPLETED"},
        "billingMeter": {"totalCredits": "5"},
        "entry": {"id": entry_id(meter_id, 5), "kind": "REVOCATION", "key": "r", "reason": "a mistake", "metadata": {}},
    }
    closed = await ask(own, "revokeCreditGrant", id=grant_id)
    assert (closed["revoked"], closed["shortfall"]) == ("0", "0")
    assert (closed["creditGrant"]["state"], closed["entry"]["key"]) == ("REVOKED", None)
    assert await disagreements(own.database, meter_id) == []


async def test_a_repeated_grant_is_replayed_as_it_now_is(gateway: Gateway) -> None:
    await make_meter(gateway)
    terms = {"amount": "20", "priority": 10, "expiresAt": "2026-04-01T00:00:00Z", "metadata": {"a": 1}}
    first = await ask(gateway, "grantCredits", **terms, idempotencyKey="k")
    await must(gateway, "recordUsage", eventId="e", amount="5")
    await ask(gateway, "updateCreditGrant", id=first["creditGrant"]["id"], priority=90)
    gateway.clock.forward(days=1)
    async with unchanged(gateway):
        again = await ask(gateway, "grantCredits", **terms, idempotencyKey="k")
    now = {"openCredits": "15", "drawnCredits": "5", "priority": 90}
    assert again == first | {"replayed": True, "creditGrant": first["creditGrant"] | now}
    # Also when its end, which was ahead, is past, and it is due.
    gateway.clock.forward(days=30)
    again = await ask(gateway, "grantCredits", **terms, idempotencyKey="k")
    now = {"openCredits": "0", "drawnCredits": "5", "expiredCredits": "15", "priority": 90, "state": "EXPIRED"}
    assert again == first | {
        "replayed": True,
        "creditGrant": first["creditGrant"] | now,
        "billingMeter": {"totalCredits": "5"},
    }
    # Any other value is another grant.
    async with unchanged(gateway):
        for other in (
            {"amount": "21"},
            {"priority": 90},
            {"category": "PROMOTIONAL"},
            {"expiresAt": "2026-04-01T00:00:01Z"},
            {"metadata": {"a": 2}},
            {"reason": "why"},
        ):
            answer = await ask(gateway, "grantCredits", **terms | other, idempotencyKey="k")
            assert answer == conflict("k", first["entry"]["id"], "GRANT")
        answer = await ask(gateway, "grantCredits", amount="20", priority=10, metadata={"a": 1}, idempotencyKey="k")
        assert answer == conflict("k", first["entry"]["id"], "GRANT")
    # Without a key each is another one, and keys of other kinds are others.
    ids = {(await ask(gateway, "grantCredits", amount="1"))["creditGrant"]["id"] for _ in range(2)}
    assert len(ids) == 2
    await must(gateway, "refillBillingMeter", refill="1", idempotencyKey="k")


async def test_a_repeated_revocation_is_replayed(gateway: Gateway) -> None:
    await make_meter(gateway)
    grant_id, other_id = await make_grant(gateway, 10), await make_grant(gateway, 10)
    part = await ask(gateway, "revokeCreditGrant", id=grant_id, amount="4", reason="why", idempotencyKey="k")
    whole = await ask(gateway, "revokeCreditGrant", id=other_id, idempotencyKey="all")
    async with unchanged(gateway):
        again = await ask(gateway, "revokeCreditGrant", id=grant_id, amount="4", reason="why", idempotencyKey="k")
        assert again == part | {"replayed": True, "billingMeter": {"totalCredits": "6"}}
        assert await ask(gateway, "revokeCreditGrant", id=other_id, idempotencyKey="all") == whole | {"replayed": True}
        for key, values, first in (
            ("k", {"id": grant_id, "amount": "5", "reason": "why"}, part),
            ("k", {"id": grant_id, "reason": "why"}, part),
            ("k", {"id": grant_id, "amount": "4"}, part),
            ("k", {"id": other_id, "amount": "4", "reason": "why"}, part),
            ("all", {"id": other_id, "amount": "10"}, whole),
            ("all", {"id": grant_id}, whole),
        ):
            answer = await ask(gateway, "revokeCreditGrant", **values, idempotencyKey=key)
            assert answer == conflict(key, first["entry"]["id"], "REVOCATION")
    # A part of it again, without a key.
    for _ in range(2):
        assert (await ask(gateway, "revokeCreditGrant", id=grant_id, amount="2"))["revoked"] == "2"


@pytest.mark.parametrize("field", ["grantCredits", "revokeCreditGrant"])
async def test_a_key_of_the_gateways_own_form_is_refused(gateway: Gateway, field: str) -> None:
    await make_meter(gateway)
    grant_id = await make_grant(gateway, 10)
    values = {"amount": "1"} if field == "grantCredits" else {"id": grant_id}
    async with unchanged(gateway):
        answer = await ask(gateway, field, **values, idempotencyKey="tollgate/x")
    assert answer == {
        "__typename": "InvalidInput",
        "code": "INVALID_INPUT",
        "message": "idempotencyKey must not begin with tollgate/, which is reserved.",
        "field": ["input", "idempotencyKey"],
    }


async def test_a_grant_that_others_have_is_not_found(gateway: Gateway) -> None:
    await make_meter(gateway)
    grant_id = await make_grant(gateway, 10)
    strangers = {
        "of another organization": await gateway.caller(org_id=f"{gateway.org_id}-other"),
        "of the other environment": await gateway.caller(environment=Environment.LIVE),
        "of another workspace": await gateway.caller(workspaces=["elsewhere"]),
    }
    async with unchanged(gateway):
        for caller in strangers.values():
            assert await ask(caller, "updateCreditGrant", id=grant_id, priority=1) == NOT_FOUND
            assert await ask(caller, "revokeCreditGrant", id=grant_id) == NOT_FOUND
            query = "query ($id: ID!) { node(id: $id) { id } nodes(ids: [$id]) { id } }"
            assert await caller.data(query, {"id": grant_id}) == {"node": None, "nodes": [None]}
    # With the workspace among its own it is found.
    assert (await ask(await gateway.caller(workspaces=["w"]), "revokeCreditGrant", id=grant_id))["revoked"] == "10"


async def test_a_grant_that_is_not_live_is_not_changed(gateway: Gateway) -> None:
    await make_meter(gateway)
    revoked = await make_grant(gateway, 10)
    expiring = await make_grant(gateway, 10, expiresAt="2026-03-16T12:01:00Z")
    await ask(gateway, "revokeCreditGrant", id=revoked)
    gateway.clock.forward(minutes=1)
    await must(gateway, "refillBillingMeter", refill="1")
    async with unchanged(gateway):
        for grant_id, state, message in (
            (revoked, "REVOKED", "The credit grant was revoked."),
            (expiring, "EXPIRED", "The credit grant has expired."),
        ):
            for change in ({"priority": 1}, {"expiresAt": "2027-01-01T00:00:00Z"}, {"removeExpiry": True}, {}):
                assert await ask(gateway, "updateCreditGrant", id=grant_id, **change) == {
                    "__typename": "CreditGrantNotLive",
                    "code": "CREDIT_GRANT_NOT_LIVE",
                    "message": message,
                    "creditGrant": {"id": grant_id, "state": state},
                }


async def test_what_each_hold_frees_covers_before_the_next_is_freed(gateway: Gateway) -> None:
    """Two holds end at one moment, and the order of use has changed since they reserved."""
    walk = Walk(gateway)
    assert await walk.take(
        "meter 10 overages; grant p 10 p10; hold h 10 60s; hold i 10 60s; update p p90;"
        " use e 10 FORCE; wait 60; use f 1"
    ) == (
        "GRANT 10 p; HOLD 10 h: p 10; HOLD 10 i: base 10; GRANT_CHANGED 0 p; USAGE 10;"
        " HOLD_EXPIRY 10 h; HOLD_EXPIRY 10 i; USAGE 1: base 1"
    )
    await walk.check()


@pytest.mark.slow
async def test_a_meter_has_at_most_so_many_live_grants(migrated_url: str) -> None:
    async with gateway_on(migrated_url, max_live_grants=3) as gateway:
        walk = Walk(gateway)
        await walk.take("meter 0; grant a 1; grant b 1 60s; grant c 1")
        async with unchanged(gateway):
            answer = await ask(gateway, "grantCredits", amount="1")
        assert answer == {
            "__typename": "TooManyCreditGrants",
            "code": "TOO_MANY_CREDIT_GRANTS",
            "message": "The billing meter may have at most 3 live credit grants.",
            "max": 3,
        }
        # A replay and an end that is past come before it, and the limit of amounts after it.
        assert await walk.take("grant a 1; grant d 1 0s; grant d 9223372036854775807") == (
            "replayed; InvalidInput expiresAt; TooManyCreditGrants 3"
        )
        # What is depleted, revoked or expired does not count; what a hold reserves does.
        assert await walk.take("use e 1; grant d 1; grant e 1") == "USAGE 1: b 1; GRANT 1 d; TooManyCreditGrants 3"
        assert await walk.take("revoke a; grant e 1; grant f 1") == "REVOCATION 1 a; GRANT 1 e; TooManyCreditGrants 3"
        assert await walk.take("hold h 3; grant f 1") == "HOLD 3 h: c 1, d 1, e 1; TooManyCreditGrants 3"
        assert await walk.take("commit h 1; grant f 1 60s; wait 60; grant g 1") == (
            "USAGE 1 h: c 1; GRANT 1 f; EXPIRY 1 f; GRANT 1 g"
        )
        # A void may pass it.
        assert await walk.take("void h; grant x 1") == "VOID 1: c 1; TooManyCreditGrants 3"
        assert (await walk.states()).count("LIVE") == 4
        await walk.check()


async def test_the_total_never_passes_the_greatest_amount(gateway: Gateway) -> None:
    walk = Walk(gateway)
    greatest = 2**63 - 1
    await walk.take(f"meter 0; grant a {greatest - 1} 60s; grant b 1")
    async with unchanged(gateway):
        answer = await ask(gateway, "grantCredits", amount="1")
    assert answer == {
        "__typename": "AmountOutOfRange",
        "code": "AMOUNT_OUT_OF_RANGE",
        "message": "The meter's total credits would pass 9223372036854775807, the greatest amount.",
    }
    assert await walk.take("grant c 1; wait 60; grant c 5") == (f"AmountOutOfRange; EXPIRY {greatest - 1} a; GRANT 5 c")
    await walk.check()


async def test_a_grant_to_no_meter_is_refused(gateway: Gateway) -> None:
    await make_meter(gateway)
    async with unchanged(gateway):
        assert await ask(gateway, "grantCredits", amount="1", externalMeterId="missing") == {
            "__typename": "BillingMeterNotFound",
            "code": "BILLING_METER_NOT_FOUND",
            "message": "There is no billing meter 'missing' in workspace 'w'.",
        }


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope is not Scope.BILLING_WRITE])
async def test_grants_want_the_scope_billing_write(gateway: Gateway, scope: Scope) -> None:
    await make_meter(gateway)
    grant_id = await make_grant(gateway, 10)
    caller = await gateway.caller(scope)
    async with unchanged(gateway):
        for field, values in (
            ("grantCredits", {"workspaceId": "w", "externalMeterId": "m", "amount": "1"}),
            ("updateCreditGrant", {"id": grant_id, "priority": 1}),
            ("revokeCreditGrant", {"id": grant_id}),
        ):
            name = field[0].upper() + field[1:]
            document = f"mutation ($input: {name}Input!) {{ {field}(input: $input) {{ __typename }} }}"
            error = await caller.error(document, {"input": values})
            assert error["message"] == "The key lacks the scope billing:write."
            assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_one_that_may_write_alone_sees_its_grant_and_reads_no_other(gateway: Gateway) -> None:
    await make_meter(gateway)
    grant_id = await make_grant(gateway, 10)
    writer = await gateway.caller(Scope.BILLING_WRITE)
    selection = "... on GrantCreditsSuccess { creditGrant { amount state reason } entry { kind } }"
    made = await writer.mutate(
        "grantCredits", selection, workspaceId="w", externalMeterId="m", amount="3", reason="why"
    )
    assert made["creditGrant"] == {"amount": "3", "state": "LIVE", "reason": "why"}
    assert made["entry"] == {"kind": "GRANT"}
    error = await writer.error("query ($id: ID!) { node(id: $id) { id } }", {"id": grant_id})
    assert error["extensions"] == {"code": "FORBIDDEN"}


async def test_one_document_makes_changes_and_revokes_in_its_order(gateway: Gateway) -> None:
    meter_id = await make_meter(gateway)
    first = f"grt_{meter_id.removeprefix('mtr_')}_2"
    data = await gateway.data(
        f"""mutation {{
          a: grantCredits(
            input: {{workspaceId: "w", externalMeterId: "m", amount: 5, idempotencyKey: "a"}}
          ) {{ ...made }}
          b: grantCredits(input: {{workspaceId: "w", externalMeterId: "m", amount: "7"}}) {{ ...made }}
          again: grantCredits(
            input: {{workspaceId: "w", externalMeterId: "m", amount: 5, idempotencyKey: "a"}}
          ) {{ ...made }}
          other: grantCredits(
            input: {{workspaceId: "w", externalMeterId: "m", amount: 6, idempotencyKey: "a"}}
          ) {{ ...made }}
          c: updateCreditGrant(input: {{id: "{first}", priority: 1}}) {{
            ... on UpdateCreditGrantSuccess {{ entry {{ kind }} }}
          }}
          d: revokeCreditGrant(input: {{id: "{first}", amount: 2}}) {{ ... on RevokeCreditGrantSuccess {{ revoked }} }}
          e: revokeCreditGrant(input: {{id: "{first}"}}) {{ ... on RevokeCreditGrantSuccess {{ revoked }} }}
          f: updateCreditGrant(input: {{id: "{first}", priority: 2}}) {{ __typename }}
        }}
        fragment made on GrantCreditsResult {{
          __typename ... on GrantCreditsSuccess {{ replayed billingMeter {{ totalCredits }} }}
        }}"""
    )
    made = {"__typename": "GrantCreditsSuccess", "replayed": False}
    assert data == {
        "a": made | {"billingMeter": {"totalCredits": "5"}},
        "b": made | {"billingMeter": {"totalCredits": "12"}},
        "again": made | {"replayed": True, "billingMeter": {"totalCredits": "12"}},
        "other": {"__typename": "IdempotencyConflict"},
        "c": {"entry": {"kind": "GRANT_CHANGED"}},
        "d": {"revoked": "2"},
        "e": {"revoked": "3"},
        "f": {"__typename": "CreditGrantNotLive"},
    }


LEDGER_WITH_DRAWS = """query ($workspaceId: String!, $externalMeterId: String!, $first: Int!) {
  billingMeter(workspaceId: $workspaceId, externalMeterId: $externalMeterId) {
    burnDown { openCredits creditGrant { id } }
    ledger(first: $first) { nodes { kind draws { amount creditGrant { id } } } }
  }
}"""


@pytest.mark.slow
async def test_more_draws_than_are_foreseen_are_admitted_as_they_are_read(migrated_url: str) -> None:
    names = {"workspaceId": "w", "externalMeterId": "m"}
    async with gateway_on(migrated_url, max_answer_values=1_000) as gateway:
        walk = Walk(gateway)
        await walk.take("meter 0; " + "; ".join(f"grant g{number} 2" for number in range(12)))
        for number in range(20):
            await walk.take(f"use u{number} 12; void u{number}")
        # Each has six draws: not all were foreseen, and all are answered.
        data = await gateway.data(LEDGER_WITH_DRAWS, {**names, "first": 4})
        assert len(data["billingMeter"]["burnDown"]) == 12
        entries = data["billingMeter"]["ledger"]["nodes"]
        assert [entry["kind"] for entry in entries] == ["VOID", "USAGE", "VOID", "USAGE"]
        assert [[draw["amount"] for draw in entry["draws"]] for entry in entries] == [["2"] * 6] * 4
        # What is foreseen of such a page may be answered; these entries have two draws more than that, each.
        await make_meter(gateway, "n")
        await gateway.data(LEDGER_WITH_DRAWS, {**names, "externalMeterId": "n", "first": 36})
        error = await gateway.error(LEDGER_WITH_DRAWS, {**names, "first": 36})
        assert error["extensions"]["code"] == "LIMIT_EXCEEDED"
        assert "values, and at most 1000 may be returned at once" in error["message"]


async def test_the_longest_page_of_a_ledger_may_have_its_draws(gateway: Gateway) -> None:
    await Walk(gateway).take("meter 0; grant a 2; use e 1")
    names = {"workspaceId": "w", "externalMeterId": "m"}
    (*_, usage) = [
        entry
        for entry in (await gateway.data(LEDGER_WITH_DRAWS, {**names, "first": 100}))["billingMeter"]["ledger"]["nodes"]
        if entry["kind"] == "USAGE"
    ]
    assert [draw["amount"] for draw in usage["draws"]] == ["1"]
