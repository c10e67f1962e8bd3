"""The reference model of a meter with grants and holds: rows computed by hand from the rules, then random commands."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.credit_ledger import MAX, Draw
from tests.credit_model import Answer, Meter

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def meter(
    total: int, *, overages: bool = False, cap: int | None = None, max_grants: int = 1000, max_holds: int = 1000
) -> Meter:
    return Meter(now=START, total=total, overages=overages, cap=cap, max_grants=max_grants, max_holds=max_holds)


def lines(meter: Meter, after: int) -> list[tuple[str, int, list[Draw]]]:
    """Kind, amount and draws of the entries after the one with this seq."""
    meter.check()
    return [(entry.kind, entry.amount, entry.draws) for entry in meter.entries[after:]]


# The order of use.

PAID, PROMOTIONAL = "PAID", "PROMOTIONAL"


@pytest.mark.parametrize(
    ("grants", "order"),
    [
        ([], [0]),
        ([(50, PAID, None)], [0, 2]),  # The base is older than all.
        ([(50, PROMOTIONAL, None)], [2, 0]),
        ([(50, PAID, 10)], [2, 0]),  # No expiry is last.
        ([(49, PAID, None)], [2, 0]),
        ([(51, PROMOTIONAL, 10)], [0, 2]),  # Priority is first.
        ([(50, PAID, 20), (50, PAID, 10)], [3, 2, 0]),
        ([(50, PROMOTIONAL, 20), (50, PAID, 10)], [3, 2, 0]),  # Expiry is before category.
        ([(50, PAID, 10), (50, PROMOTIONAL, 10)], [3, 2, 0]),
        ([(50, PAID, 10), (50, PAID, 10)], [2, 3, 0]),
        ([(0, PAID, None), (100, PAID, 5), (50, PROMOTIONAL, None)], [2, 4, 0, 3]),
    ],
)
def test_order_of_use(grants: list[tuple[int, str, int | None]], order: list[int]) -> None:
    m = meter(1)
    for number, (priority, category, end) in enumerate(grants):
        expires_at = None if end is None else at(end)
        m.grant(at(0), f"g{number}", 1, priority=priority, category=category, expires_at=expires_at)
    assert m.state(at(0))["burn_down"] == [(seq, 1) for seq in order]
    answer = m.record(at(0), "e", len(order))
    assert answer.seq is not None
    assert m.entries[answer.seq - 1].draws == [(seq, 1) for seq in order]
    m.check()


def test_debits_draw_over_several_grants_and_leave_the_rest_uncovered() -> None:
    m = meter(10, overages=True, cap=10)
    m.grant(at(0), "a", 5, expires_at=at(100))
    m.grant(at(0), "b", 4, priority=40)
    m.record(at(1), "e1", 8)
    m.record(at(1), "e2", 5)
    m.record(at(1), "e3", 10)
    assert lines(m, 3) == [("USAGE", 8, [(3, 4), (2, 4)]), ("USAGE", 5, [(2, 1), (0, 4)]), ("USAGE", 10, [(0, 6)])]
    assert [entry.uncovered for entry in m.entries[3:]] == [0, 0, 4]
    assert m.state(at(1))["available"] == 6
    # The grant without expiry is used, the other's end takes nothing.
    assert m.state(at(100))["total"] == 19


def test_pins_keep_their_order_when_a_grant_changes() -> None:
    m = meter(0)
    m.grant(at(0), "a", 5, priority=40)
    m.grant(at(0), "b", 5)
    m.hold(at(0), "h", 8)
    assert m.update_grant(at(0), 2, priority=60).seq == 5
    m.record(at(0), "e", 1)
    m.commit(at(0), "h", 6)
    assert lines(m, 3) == [
        ("HOLD", 8, [(2, 5), (3, 3)]),
        ("GRANT_CHANGED", 0, []),
        ("USAGE", 1, [(3, 1)]),
        ("USAGE", 6, [(2, 5), (3, 1)]),
    ]
    assert m.state(at(0))["burn_down"] == [(3, 3)]


# What is uncovered.


def test_new_credits_cover_what_is_uncovered() -> None:
    m = meter(0, overages=True)
    m.record(at(0), "e", 7)
    assert m.state(at(0))["uncovered"] == 7
    m.grant(at(1), "a", 5)
    shown = m.state(at(1))
    assert (shown["uncovered"], shown["overage"], shown["burn_down"]) == (2, 2, [])
    grant = shown["grants"][3]
    assert (grant["open"], grant["drawn"], grant["state"]) == (0, 5, "DEPLETED")
    m.refill(at(2), "r", 4)
    shown = m.state(at(2))
    assert (shown["uncovered"], shown["overage"], shown["burn_down"]) == (0, 0, [(0, 2)])
    assert lines(m, 1) == [("USAGE", 7, []), ("GRANT", 5, []), ("REFILL", 4, [])]


def test_freed_pins_cover_in_the_order_of_use() -> None:
    m = meter(0)
    m.grant(at(0), "a", 5, priority=60)
    m.grant(at(0), "b", 5)
    m.hold(at(0), "h", 10)
    assert m.record(at(0), "e", 6, "FORCE").facts == {"accepted": 6, "refused": 0, "overLimit": True}
    shown = m.state(at(0))
    assert (shown["uncovered"], shown["pinned"], shown["overage"]) == (6, 10, 0)
    m.release(at(0), "h")
    shown = m.state(at(0))
    assert (shown["uncovered"], shown["burn_down"]) == (0, [(2, 4)])
    m.check()


def test_a_void_gives_back_last_first() -> None:
    m = meter(4, overages=True, cap=1)
    m.grant(at(0), "a", 2, priority=40)
    m.grant(at(0), "b", 3, priority=30)
    m.record(at(0), "e", 10)
    for key, amount in (("v1", 1), ("v2", 3), ("v3", 3), ("v4", None)):
        m.void(at(1), key, "e", amount)
    assert lines(m, 3) == [
        ("USAGE", 10, [(3, 3), (2, 2), (0, 4)]),
        ("VOID", 1, []),  # What was uncovered.
        ("VOID", 3, [(0, 3)]),
        ("VOID", 3, [(0, 1), (2, 2)]),
        ("VOID", 3, [(3, 3)]),
    ]
    assert m.void(at(2), "v5", "e", None) == Answer("ExceedsVoidable", facts={"voidable": 0})
    assert m.void(at(2), "v2", "e", 3) == Answer("Success", 6, replayed=True)
    assert m.void(at(2), "v2", "e", 2) == Answer("IdempotencyConflict", facts={"firstEntry": 6})


def test_a_void_gives_back_what_grants_covered_the_newest_first_then_the_base() -> None:
    m = meter(0, overages=True)
    m.record(at(0), "e", 7)
    m.grant(at(1), "a", 2)
    m.grant(at(1), "b", 3, expires_at=at(10))
    m.refill(at(1), "r", 1)
    assert m.state(at(1))["uncovered"] == 1
    m.void(at(20), "v1", "e", 4)  # What is uncovered, then what `b` covered, which has ended.
    m.void(at(20), "v2", "e", 3)
    assert lines(m, 5) == [("VOID", 4, [(4, 3)]), ("EXPIRY", 3, []), ("VOID", 3, [(3, 2), (0, 1)])]
    assert m.state(at(20))["burn_down"] == [(0, 1), (3, 2)]


def test_a_void_takes_what_is_uncovered_of_any_event() -> None:
    m = meter(0, overages=True)
    m.record(at(0), "e1", 3)
    m.record(at(0), "e2", 3)
    m.grant(at(1), "a", 4)
    m.void(at(2), "v", "e1", None)
    assert lines(m, 4) == [("VOID", 3, [(4, 1)])]
    shown = m.state(at(2))
    assert (shown["uncovered"], shown["grants"][4]["open"], shown["grants"][4]["drawn"]) == (0, 1, 3)


def test_what_a_void_gives_back_covers_what_is_uncovered() -> None:
    m = meter(3, overages=True)
    m.record(at(0), "e1", 3)
    m.record(at(0), "e2", 2)
    m.void(at(1), "v", "e1", None)
    assert lines(m, 3) == [("VOID", 3, [(0, 3)])]
    shown = m.state(at(1))
    assert (shown["uncovered"], shown["burn_down"]) == (0, [(0, 1)])


# Expiry.


def test_an_expiry_takes_what_is_open_at_its_own_moment() -> None:
    m = meter(0)
    m.grant(at(0), "a", 10, expires_at=at(100))
    m.record(at(1), "e", 4)
    assert m.state(at(99.9))["grants"][2]["state"] == "LIVE"
    shown = m.state(at(100))
    assert (shown["total"], shown["grants"][2]["expired"], shown["grants"][2]["state"]) == (4, 6, "EXPIRED")
    assert len(m.entries) == 3  # A read writes nothing.
    refusal = m.record(at(150), "e2", 1)
    assert refusal == Answer("InsufficientCredits", facts={"available": 0, "held": 0, "openHolds": 0})
    assert lines(m, 3) == [("EXPIRY", 6, [])]
    assert m.entries[3].at == at(100)
    assert m.update_grant(at(150), 2, expires_at=at(900)).outcome == "CreditGrantNotLive"


def test_a_used_grant_ends_without_an_entry() -> None:
    m = meter(0)
    m.grant(at(0), "a", 4, expires_at=at(100))
    m.record(at(1), "e", 4)
    assert m.state(at(99))["grants"][2]["state"] == "DEPLETED"
    assert m.state(at(100))["grants"][2]["state"] == "EXPIRED"
    m.settle(at(100))
    assert lines(m, 3) == []


def test_pins_survive_an_expiry_and_what_is_freed_later_expires_at_once() -> None:
    m = meter(0)
    m.grant(at(0), "a", 10, expires_at=at(100))
    m.hold(at(0), "h", 6)
    shown = m.state(at(100))
    assert (shown["total"], shown["pinned"], shown["grants"][2]["state"]) == (6, 6, "EXPIRED")
    m.commit(at(150), "h", 2)
    m.void(at(160), "v", "h", None)
    assert lines(m, 3) == [
        ("EXPIRY", 4, []),
        ("USAGE", 2, [(2, 2)]),
        ("EXPIRY", 4, []),
        ("VOID", 2, [(2, 2)]),
        ("EXPIRY", 2, []),
    ]
    assert [entry.at for entry in m.entries[3:]] == [at(100), at(150), at(150), at(160), at(160)]
    assert [entry.total_after for entry in m.entries[3:]] == [6, 6, 2, 2, 0]


def test_what_is_due_is_booked_moment_by_moment_holds_first_then_grants_in_the_order_of_use() -> None:
    m = meter(0)
    m.grant(at(0), "a", 5, expires_at=at(100))
    m.grant(at(0), "b", 5, priority=40, expires_at=at(100))
    m.grant(at(0), "c", 5, priority=30, expires_at=at(200))
    m.hold(at(0), "h1", 7, expires_in=100)  # Of `c` 5, of `b` 2.
    m.hold(at(10), "h2", 4, expires_in=90)  # Of `b` 3, of `a` 1.
    m.hold(at(20), "h3", 1, expires_in=30)  # Of `a` 1.
    m.settle(at(500))
    assert lines(m, 7) == [
        ("HOLD_EXPIRY", 1, []),
        ("HOLD_EXPIRY", 7, []),
        ("HOLD_EXPIRY", 4, []),
        ("EXPIRY", 5, []),
        ("EXPIRY", 5, []),
        ("EXPIRY", 5, []),
    ]
    assert [entry.hold_id or entry.grant for entry in m.entries[7:]] == ["h3", "h1", "h2", 3, 2, 4]
    assert [entry.at for entry in m.entries[7:]] == [at(50), *[at(100)] * 4, at(200)]


def test_overage_rises_when_a_hold_frees_credit_of_a_grant_that_has_ended() -> None:
    m = meter(0)
    m.grant(at(0), "a", 5, expires_at=at(100))
    m.hold(at(0), "h", 5, expires_in=200)
    m.record(at(10), "e", 3, "FORCE")
    overages = [(m.state(at(second))["overage"], m.state(at(second))["uncovered"]) for second in (10, 100, 200)]
    assert overages == [(0, 3), (0, 3), (3, 3)]
    m.settle(at(200))
    assert lines(m, 4) == [("HOLD_EXPIRY", 5, []), ("EXPIRY", 5, [])]


def test_a_clock_that_is_behind_decides_at_the_last_entry() -> None:
    m = meter(9)
    m.record(at(50), "e", 1)
    assert m.grant(at(30), "g", 1, expires_at=at(50)).outcome == "InvalidInput"
    m.hold(at(30), "h", 1, expires_in=10)
    assert m.state(at(0))["holds"]["h"]["expires_at"] == at(60)
    assert m.entries[-1].at == at(50)


# Revocations.


def test_a_revoke_of_a_part_leaves_the_grant_live_and_says_what_is_short() -> None:
    m = meter(0)
    m.grant(at(0), "a", 10)
    m.record(at(0), "e", 4)
    assert m.revoke(at(1), "r1", 2, 3).facts == {"revoked": 3, "shortfall": 0}
    assert m.state(at(1))["grants"][2]["state"] == "LIVE"
    assert m.revoke(at(1), "r2", 2, 5).facts == {"revoked": 3, "shortfall": 2}
    assert m.state(at(1))["grants"][2]["state"] == "DEPLETED"
    m.void(at(1), "v", "e", 1)
    assert m.state(at(1))["grants"][2]["state"] == "LIVE"
    assert m.revoke(at(1), "r3", 2, None).facts == {"revoked": 1, "shortfall": 0}
    m.void(at(1), "v2", "e", None)
    assert m.revoke(at(1), "r4", 2, 7).facts == {"revoked": 0, "shortfall": 7}
    assert lines(m, 3) == [
        ("REVOCATION", 3, []),
        ("REVOCATION", 3, []),
        ("VOID", 1, [(2, 1)]),
        ("REVOCATION", 1, []),
        ("VOID", 3, [(2, 3)]),
        ("REVOCATION", 3, []),
        ("REVOCATION", 0, []),
    ]
    assert [entry.key for entry in m.entries[3:]] == ["r1", "r2", "v", "r3", "v2", None, "r4"]
    shown = m.state(at(1))
    assert (shown["total"], shown["grants"][2]["revoked"], shown["grants"][2]["state"]) == (0, 10, "REVOKED")
    again = Answer("Success", 5, replayed=True, facts={"revoked": 3, "shortfall": 2})
    assert m.revoke(at(1), "r2", 2, 5) == again
    assert m.revoke(at(1), "r2", 2, None) == Answer("IdempotencyConflict", facts={"firstEntry": 5})
    assert m.update_grant(at(1), 2, priority=1).outcome == "CreditGrantNotLive"
    assert m.revoke(at(1), "r9", 3, None).outcome == "CreditGrantNotFound"


def test_pins_survive_a_revoke() -> None:
    m = meter(0)
    m.grant(at(0), "a", 10)
    m.hold(at(0), "h", 6)
    assert m.revoke(at(1), "r", 2, None).facts == {"revoked": 4, "shortfall": 0}
    m.commit(at(2), "h", 5)
    assert lines(m, 3) == [("REVOCATION", 4, []), ("USAGE", 5, [(2, 5)]), ("REVOCATION", 1, [])]
    assert m.entries[-1].key is None


def test_a_revoke_of_an_expired_grant_takes_nothing() -> None:
    m = meter(0)
    m.grant(at(0), "a", 10, expires_at=at(10))
    assert m.revoke(at(10), "r", 2, 4).facts == {"revoked": 0, "shortfall": 4}
    assert lines(m, 2) == [("EXPIRY", 10, []), ("REVOCATION", 0, [])]
    assert m.state(at(10))["grants"][2]["state"] == "EXPIRED"
    assert m.revoke(at(10), "r2", 2, None).facts == {"revoked": 0, "shortfall": 0}
    assert m.state(at(10))["grants"][2]["state"] == "REVOKED"


# Holds.


@pytest.mark.parametrize(
    ("amount", "policy", "accepted", "draws", "uncovered", "over"),
    [
        (1, "PARTIAL", 1, [(2, 1)], 0, False),
        (3, "FORCE", 3, [(2, 2), (0, 1)], 0, False),
        (4, "REJECT", 4, [(2, 2), (0, 2)], 0, False),
        (6, "PARTIAL", 6, [(2, 2), (0, 4)], 0, False),
        (7, "REJECT", 7, [(2, 2), (0, 5)], 0, False),
        (9, "PARTIAL", 7, [(2, 2), (0, 5)], 0, False),
        (9, "FORCE", 9, [(2, 2), (0, 5)], 2, True),  # The other hold's pins stay.
        (8, "REJECT", None, [], 0, False),
    ],
)
def test_a_commit_is_a_debit_beyond_what_is_held(
    amount: int, policy: str, accepted: int | None, draws: list[Draw], uncovered: int, *, over: bool
) -> None:
    m = meter(8)
    m.grant(at(0), "a", 2, priority=1)
    m.hold(at(0), "h", 4)  # Of the grant 2, of the base 2.
    m.hold(at(0), "other", 3)
    answer = m.commit(at(1), "h", amount, policy)
    hold = m.state(at(1))["holds"]["h"]
    if accepted is None:
        assert answer == Answer("InsufficientCredits", facts={"available": 3, "held": 7, "openHolds": 2})
        assert (hold["state"], hold["committed"]) == ("OPEN", None)
        assert lines(m, 4) == []
        return
    facts = {"accepted": accepted, "refused": amount - accepted, "overLimit": over}
    assert answer == Answer("Success", 5, facts={**facts})
    assert (hold["state"], hold["committed"], hold["closed_at"]) == ("COMMITTED", accepted, at(1))
    assert lines(m, 4) == [("USAGE", accepted, draws)]
    entry = m.entries[-1]
    assert (entry.uncovered, entry.used_after, entry.held_after, entry.hold_id) == (uncovered, accepted, 3, "h")
    assert m.commit(at(2), "h", amount, policy, "RECORD") == Answer("Success", 5, replayed=True, facts={**facts})
    assert m.commit(at(2), "h", amount + 1, policy).outcome == "IdempotencyConflict"


def test_a_commit_up_to_what_is_held_does_not_fail_after_the_cap_was_lowered() -> None:
    m = meter(0, overages=True, cap=10)
    m.hold(at(0), "h", 8)
    assert m.hold(at(0), "h2", 3).outcome == "SpendCapExceeded"
    m.settings(at(1), overages=False, cap=0)
    shown = m.state(at(1))
    assert (shown["available"], shown["held"], shown["pinned"]) == (0, 8, 0)
    assert m.commit(at(2), "h", 9, "REJECT").outcome == "InsufficientCredits"
    assert m.commit(at(2), "h", 9).facts == {"accepted": 8, "refused": 1, "overLimit": True}
    assert m.entries[-1].uncovered == 8
    m.check()


def test_a_commit_may_draw_a_grant_twice_and_a_void_gives_the_later_draw_back_first() -> None:
    m = meter(0)
    m.grant(at(0), "a", 4, priority=40)
    m.grant(at(0), "b", 5)
    m.record(at(0), "e", 1)
    m.hold(at(0), "h", 5)  # Of `a` 3, of `b` 2.
    m.void(at(0), "v", "e", None)  # Gives `a` 1.
    m.commit(at(0), "h", 7)
    m.void(at(0), "v2", "h", 3)
    assert lines(m, 6) == [("USAGE", 7, [(2, 3), (3, 2), (2, 1), (3, 1)]), ("VOID", 3, [(3, 1), (2, 1), (3, 1)])]


def test_a_commit_of_0_is_a_release_and_both_are_replayed() -> None:
    m = meter(10)
    m.hold(at(0), "h", 4)
    facts = {"released": 4, "accepted": 0, "refused": 0, "overLimit": False}
    assert m.commit(at(1), "h", 0) == Answer("Success", 3, facts={**facts})
    assert lines(m, 2) == [("RELEASE", 4, [])]
    again = Answer("Success", 3, replayed=True, facts={**facts})
    assert m.release(at(2), "h") == again
    assert m.commit(at(2), "h", 0, "REJECT", "RECORD") == again
    closed = Answer("HoldNotOpen", facts={"state": "RELEASED", "closedAt": at(1).isoformat()})
    assert m.commit(at(2), "h", 1) == closed
    assert m.extend(at(2), "h", 10) == closed
    assert m.state(at(2))["holds"]["h"]["committed"] is None
    assert m.commit(at(3), "h", 1, "REJECT", "RECORD").seq == 4
    assert m.commit(at(3), "h", 0) == again


def test_a_release_of_a_committed_hold_is_refused() -> None:
    m = meter(10)
    m.hold(at(0), "h", 4)
    m.commit(at(1), "h", 4)
    assert m.release(at(2), "h").facts == {"state": "COMMITTED", "closedAt": at(1).isoformat()}
    assert m.commit(at(2), "h", 0) == Answer("IdempotencyConflict", facts={"firstEntry": 3})
    assert m.release(at(2), "x").outcome == "HoldNotFound"
    assert lines(m, 3) == []


def test_if_closed_record_is_a_plain_debit_under_the_id_of_the_hold() -> None:
    m = meter(5)
    m.hold(at(0), "h", 4, expires_in=10)
    assert m.commit(at(10), "h", 3).facts == {"state": "EXPIRED", "closedAt": at(10).isoformat()}
    assert m.commit(at(11), "h", 0, "PARTIAL", "RECORD").seq is None
    assert m.commit(at(11), "h", 6, "REJECT", "RECORD").outcome == "InsufficientCredits"
    assert m.commit(at(11), "x", 3, "PARTIAL", "RECORD").outcome == "HoldNotFound"
    facts = {"accepted": 5, "refused": 1, "overLimit": False}
    assert m.commit(at(12), "h", 6, "PARTIAL", "RECORD") == Answer("Success", 4, facts={**facts})
    assert (m.entries[-1].hold_id, m.entries[-1].key) == (None, "h")
    assert m.commit(at(13), "h", 6) == Answer("Success", 4, replayed=True, facts={**facts})
    hold = m.state(at(13))["holds"]["h"]
    assert (hold["state"], hold["committed"]) == ("EXPIRED", None)
    m.void(at(14), "v", "h", None)
    assert lines(m, 2) == [("HOLD_EXPIRY", 4, []), ("USAGE", 5, [(0, 5)]), ("VOID", 5, [(0, 5)])]
    # Of a plain debit 0 is a refusal.
    m.record(at(15), "e", 5)
    m.settings(at(15), overages=True, cap=2)
    m.hold(at(15), "h2", 2, expires_in=1)
    m.settings(at(16), cap=0)
    assert m.commit(at(16), "h2", 1, "PARTIAL", "RECORD").outcome == "SpendCapExceeded"


def test_an_extension_is_the_later_expiry_and_a_day_at_most() -> None:
    m = meter(5)
    m.hold(at(0), "h", 4)
    expiries = []
    for second, seconds in ((0, 100), (100, 1000), (100, 86_400), (100, 86_301), (100, 86_300), (86_399, 1)):
        outcome = m.extend(at(second), "h", seconds).outcome
        expiries.append((outcome, (m.state(at(second))["holds"]["h"]["expires_at"] - START).total_seconds()))
    assert expiries == [
        ("Success", 900),
        ("Success", 1100),
        ("InvalidInput", 1100),
        ("InvalidInput", 1100),
        ("Success", 86_400),
        ("Success", 86_400),
    ]
    assert len(m.entries) == 2
    assert m.extend(at(86_400), "h", 1).outcome == "HoldNotOpen"
    assert m.extend(at(86_400), "x", 1).outcome == "HoldNotFound"
    assert m.entries[-1].at == at(86_400)


def test_a_hold_is_decided_like_a_debit() -> None:
    m = meter(10)
    m.record(at(0), "e", 3)
    assert m.hold(at(0), "a", 5).facts == {"accepted": 5, "refused": 0, "overLimit": False}
    assert m.hold(at(0), "b", 3).facts == {"available": 2, "held": 5, "openHolds": 1}
    assert m.record(at(0), "e2", 3).facts == {"available": 2, "held": 5, "openHolds": 1}
    assert m.hold(at(0), "b", 3, "PARTIAL").facts == {"accepted": 2, "refused": 1, "overLimit": False}
    assert m.hold(at(0), "c", 1, "PARTIAL").outcome == "InsufficientCredits"
    assert m.hold(at(0), "a", 5).replayed
    m.release(at(0), "a")
    assert m.hold(at(0), "a", 5) == Answer(
        "Success", 3, replayed=True, facts={"accepted": 5, "refused": 0, "overLimit": False}
    )
    assert m.hold(at(0), "a", 5, expires_in=901) == Answer("IdempotencyConflict", facts={"firstEntry": 3})


def test_a_hold_into_overage_pins_what_is_open_alone() -> None:
    m = meter(10, overages=True, cap=10)
    m.hold(at(0), "h", 15)
    assert lines(m, 1) == [("HOLD", 15, [(0, 10)])]
    m.refill(at(0), "r", 10)  # It is not pinned, and may be drawn.
    shown = m.state(at(0))
    assert (shown["held"], shown["pinned"], shown["available"], shown["burn_down"]) == (15, 10, 15, [(0, 10)])
    m.record(at(0), "e", 8)
    m.commit(at(0), "h", 15)
    assert [(entry.draws, entry.uncovered) for entry in m.entries[3:]] == [([(0, 8)], 0), ([(0, 12)], 3)]
    m.check()


def test_hold_ids_and_event_ids_are_one_namespace() -> None:
    m = meter(10)
    m.record(at(0), "e", 1)
    m.hold(at(0), "h", 2)
    assert m.hold(at(0), "e", 1) == Answer("IdempotencyConflict", facts={"firstEntry": 2})
    assert m.record(at(0), "h", 2) == Answer("IdempotencyConflict", facts={"firstEntry": 3})
    assert m.record(at(0), "h", 0) == Answer("Success", facts={"accepted": 0, "refused": 0, "overLimit": False})
    assert m.commit(at(0), "e", 1).outcome == "HoldNotFound"
    assert m.void(at(0), "v", "h", None).outcome == "UsageEventNotFound"
    m.release(at(0), "h")
    assert m.record(at(0), "h", 2).outcome == "IdempotencyConflict"


# Limits.


def test_counts_are_limited_after_replays_and_before_credits() -> None:
    m = meter(2, max_grants=2, max_holds=2)
    m.hold(at(0), "a", 1)
    m.settings(at(0), max_open_holds=1)
    assert m.hold(at(0), "a", 1).replayed
    assert m.hold(at(0), "b", 99) == Answer("TooManyHolds", facts={"max": 1})
    m.settings(at(0), max_open_holds=None)
    m.hold(at(0), "b", 1)
    assert m.hold(at(0), "c", 1) == Answer("TooManyHolds", facts={"max": 2})
    m.release(at(0), "a")
    assert m.hold(at(0), "c", 2).outcome == "InsufficientCredits"
    m.grant(at(0), "g1", 1, expires_at=at(10))
    m.grant(at(0), "g2", 1)
    assert m.grant(at(1), "g3", 1, expires_at=at(1)).outcome == "InvalidInput"
    assert m.grant(at(1), "g3", MAX) == Answer("TooManyCreditGrants", facts={"max": 2})
    assert m.grant(at(10), "g1", 1, expires_at=at(10)).replayed
    assert m.grant(at(10), "g3", 1).outcome == "Success"
    m.check()


def test_a_void_may_pass_the_limit_of_grants() -> None:
    m = meter(0, max_grants=1)
    m.grant(at(0), "g1", 1)
    m.record(at(0), "e", 1)
    m.grant(at(0), "g2", 1)
    m.void(at(0), "v", "e", None)
    assert [grant["state"] for grant in m.state(at(0))["grants"].values()] == ["LIVE", "LIVE"]


def test_used_and_held_never_pass_what_64_bits_hold() -> None:
    m = meter(MAX - 10, overages=True)
    assert m.refill(at(0), "r", 11).outcome == "AmountOutOfRange"
    assert m.grant(at(0), "g", 11).outcome == "AmountOutOfRange"
    m.grant(at(0), "g", 10)
    m.hold(at(0), "h", 5)
    m.record(at(0), "e", MAX - 8)
    for policy in ("REJECT", "PARTIAL", "FORCE"):
        assert m.record(at(0), "e2", 4, policy).outcome == "AmountOutOfRange"
        assert m.commit(at(0), "h", 9, policy).outcome == "AmountOutOfRange"
    assert m.hold(at(0), "h2", 4).outcome == "AmountOutOfRange"
    assert m.state(at(0))["holds"]["h"]["state"] == "OPEN"
    m.settings(at(0), cap=MAX)
    shown = m.state(at(0))
    assert (m.limit, shown["available"]) == (MAX, 3)
    assert m.record(at(0), "e2", 4, "FORCE").outcome == "AmountOutOfRange"
    assert m.record(at(0), "e2", 4).outcome == "SpendCapExceeded"  # The limit is decided first.
    assert m.commit(at(0), "h", 9).facts == {"accepted": 8, "refused": 1, "overLimit": False}
    assert m.state(at(0))["used"] == MAX
    m.check()


MALFORMED: list[Callable[[Meter], Answer]] = [
    lambda m: m.refill(at(99), "k", 0),
    lambda m: m.void(at(99), "k", "e", 0),
    lambda m: m.grant(at(99), "k", 0),
    lambda m: m.grant(at(99), "k", 1, priority=101),
    lambda m: m.grant(at(99), "k", 1, priority=-1),
    lambda m: m.update_grant(at(99), 2, priority=101),
    lambda m: m.update_grant(at(99), 2, expires_at=at(200), remove_expiry=True),
    lambda m: m.revoke(at(99), "k", 2, 0),
    lambda m: m.hold(at(99), "h", 0),
    lambda m: m.hold(at(99), "h", 1, "FORCE"),
    lambda m: m.hold(at(99), "h", 1, expires_in=0),
    lambda m: m.hold(at(99), "h", 1, expires_in=86_401),
    lambda m: m.extend(at(99), "h", 0),
    lambda m: m.extend(at(99), "h", 86_401),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_commands_are_invalid(number: int) -> None:
    m = meter(10)
    m.grant(at(0), "g", 1, expires_at=at(50))
    assert MALFORMED[number](m) == Answer("InvalidInput")
    assert lines(m, 2) == []


def test_updates_change_priority_and_expiry() -> None:
    m = meter(0)
    m.grant(at(0), "g", 1, expires_at=at(50))
    assert m.update_grant(at(1), 3).outcome == "CreditGrantNotFound"
    assert m.update_grant(at(1), 2, expires_at=at(1)).outcome == "InvalidInput"
    assert m.update_grant(at(1), 2, priority=50, expires_at=at(50)) == Answer("Success")
    assert m.update_grant(at(1), 2, remove_expiry=True) == Answer("Success", 3)
    assert m.state(at(60))["grants"][2]["expires_at"] is None
    m.update_grant(at(60), 2, expires_at=at(70))
    m.settle(at(80))
    assert lines(m, 2) == [("GRANT_CHANGED", 0, []), ("GRANT_CHANGED", 0, []), ("EXPIRY", 1, [])]


# Random commands.

SITUATIONS = {
    "second EXPIRY",
    "keyless REVOCATION",
    "commit from an ended grant",
    "uncovered",
    "several draws",
    "void of several draws",
    "void of what is uncovered",
    "void to an ended grant",
    "covered by a grant",
    "replay",
}
Command = Callable[[Meter, datetime], Answer]


class Run:
    """A meter under random commands. `seen` counts answers and the situations that the rules are about."""

    def __init__(self, chance: random.Random, seen: Counter[str]) -> None:
        self.chance, self.seen, self.now = chance, seen, START
        overages, cap = chance.random() < 0.4, chance.choice([None, 0, 5])
        self.meter = Meter(now=START, total=chance.randrange(15), overages=overages, cap=cap, max_grants=4, max_holds=4)
        self.done: list[tuple[Command, Answer]] = []

    def amount(self) -> int:
        return MAX - self.chance.randrange(9) if self.chance.random() < 0.02 else self.chance.randrange(10)

    def name(self, letter: str, known: list[str]) -> str:
        """A new name, or one that is known."""
        return self.chance.choice(known) if known and self.chance.random() < 0.1 else f"{letter}{self.chance.random()}"

    def drawn(self) -> tuple[str, Command]:
        """A command, with values that mostly fit the meter and sometimes miss it."""
        meter, some, amount = self.meter, self.chance.choice, self.amount()
        keys = [entry.key for entry in meter.entries if entry.key]
        key, event, hold = self.name("k", keys), self.name("e", keys), self.name("h", keys)
        used = some([entry.key for entry in meter.entries if entry.kind == "USAGE" and entry.key] or [event])
        opened = [hold_id for hold_id, of_id in meter.holds.items() if of_id.state == "OPEN"]
        held = some(opened or [hold]) if self.chance.random() < 0.8 else some([*meter.holds, event])
        debit, hold_policy = some(["REJECT", "PARTIAL", "FORCE"]), some(["REJECT", "PARTIAL"])
        seconds = some([1, 5, 10, 20, 86_400])
        end = some([None, self.now + timedelta(seconds=seconds), *[of_id.expires_at for of_id in meter.holds.values()]])
        grant = some([grant.seq for grant in meter.grants()][-3:] or [0])
        maybe, priority, category = some([None, amount]), some([50, 50, 40, 60]), some(["PAID", "PROMOTIONAL"])
        overages, cap, closed = some([None, True, False]), some([None, amount]), some(["REFUSE", "RECORD"])
        commands: list[tuple[int, str, Command]] = [
            (1, "refill", lambda m, t: m.refill(t, key, amount)),
            (1, "settings", lambda m, t: m.settings(t, overages=overages, cap=cap)),
            (6, "record", lambda m, t: m.record(t, event, amount, debit)),
            (5, "void", lambda m, t: m.void(t, key, used, maybe)),
            (5, "grant", lambda m, t: m.grant(t, key, amount, priority=priority, category=category, expires_at=end)),
            (1, "update", lambda m, t: m.update_grant(t, grant, priority=priority, expires_at=end)),
            (1, "revoke", lambda m, t: m.revoke(t, key, grant, maybe)),
            (7, "hold", lambda m, t: m.hold(t, hold, amount, hold_policy, seconds)),
            (8, "commit", lambda m, t: m.commit(t, held, amount, debit, closed)),
            (1, "release", lambda m, t: m.release(t, held)),
            (1, "extend", lambda m, t: m.extend(t, held, seconds)),
        ]
        return self.chance.choices([named[1:] for named in commands], [named[0] for named in commands])[0]

    def step(self) -> None:
        meter, chance = self.meter, self.chance
        due = meter.next_due()
        wanted = due if due and chance.random() < 0.1 else self.now + timedelta(seconds=chance.choice([0, 0, 1, 2, -3]))
        self.now = max(START, wanted)
        before, shown = meter.as_settled(self.now).entries, meter.state(self.now)
        if chance.random() < 0.5:
            while (moment := meter.next_due()) is not None and moment <= self.now:
                meter.settle(moment)
                meter.check()
        if self.done and chance.random() < 0.1:
            command, first = chance.choice(self.done)
            answer = command(meter, self.now)
            assert answer == Answer("Success", first.seq, replayed=True, facts=first.facts)
            self.seen["replay"] += 1
        else:
            name, command = self.drawn()
            answer = command(meter, self.now)
            self.seen[f"{name} {answer.outcome}"] += 1
            if answer.seq is not None and not answer.replayed and name not in {"settings", "update"}:
                self.done.append((command, answer))
        meter.settle(self.now)
        if answer.outcome == "Success" and answer.seq is not None and not answer.replayed:
            assert meter.entries[: len(before)] == before
            assert meter.entries[len(before)].seq == answer.seq
        else:  # Nothing but what was due is booked, and a read had shown it.
            assert meter.entries == before
            assert answer.outcome == "Success" or meter.state(self.now) == shown
        meter.check()

    def count_situations(self) -> None:
        entries, seen = self.meter.entries, self.seen
        for entry in entries:
            seen[entry.kind] += 1
            before = entries[: entry.seq - 1]
            ended = {of.grant for of in before if of.kind in {"EXPIRY", "REVOCATION"} and of.sent[1] is None}
            if entry.kind == "EXPIRY":
                seen["second EXPIRY"] += entry.grant in ended
            if entry.kind == "REVOCATION":
                seen["keyless REVOCATION"] += entry.key is None
            if entry.kind == "USAGE":
                seen["commit from an ended grant"] += any(seq in ended for seq, _ in entry.draws)
                seen["uncovered"] += entry.uncovered > 0
                seen["several draws"] += len(entry.draws) > 2
            if entry.kind == "VOID":
                seen["void of several draws"] += len(entry.draws) > 1
                seen["void of what is uncovered"] += sum(amount for _, amount in entry.draws) < entry.amount
                seen["void to an ended grant"] += any(seq in ended for seq, _ in entry.draws)
        seen["covered by a grant"] += any(grant.covered for grant in self.meter.grants())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_identities_hold_after_random_commands(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # So that a run can be repeated.
    seen: Counter[str] = Counter()
    for _ in range(40):
        run = Run(chance, seen)
        for _ in range(60):
            run.step()
        run.count_situations()
    assert {name for name, times in seen.items() if times} >= SITUATIONS
