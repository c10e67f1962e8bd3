"""The limit rule: how much of a meter may be used, and what each policy accepts of a debit."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resolvers.errors import AmountOutOfRange, InsufficientCredits, LimitRefusal, Refusal, SpendCapExceeded
from resolvers.meters.record_usage import accepted_amount
from resolvers.rules.balances import available_bits, available_credits, limit_credits, overage_credits
from resolvers.values import MAX_AMOUNT
from storage.meters.billing_meters import BillingMeterRow
from storage.meters.ledger import OverLimitPolicy
from storage.tenants import Environment

MAX = 2**63 - 1

REJECT = OverLimitPolicy.REJECT
PARTIAL = OverLimitPolicy.PARTIAL
FORCE = OverLimitPolicy.FORCE

OFF = False
ON = True

Insufficient = InsufficientCredits
CapExceeded = SpendCapExceeded
OutOfRange = AmountOutOfRange


def meter_row(*, total: int, used: int, overages: bool, cap: int | None) -> BillingMeterRow:
    now = datetime(2026, 3, 16, tzinfo=UTC)
    limit = limit_credits(total, allow_overages=overages, spend_cap=cap)
    return BillingMeterRow(
        id="mtr_000000000000000000000001",
        org_id="org",
        environment=Environment.SANDBOX,
        workspace_id="w",
        external_meter_id="m",
        customer_id=None,
        timezone="UTC",
        total_credits=total,
        used_credits=used,
        allow_overages=overages,
        spend_cap=cap,
        limit_credits=limit,
        available_bits=available_bits(limit, used, 0),
        last_seq=1,
        created_at=now,
        updated_at=now,
    )


def decision(meter: BillingMeterRow, amount: int, policy: OverLimitPolicy) -> int | Refusal:
    """Return what is accepted of the amount, or the refusal."""
    try:
        return accepted_amount(meter, amount, policy)
    except Refusal as refusal:
        return refusal


# fmt: off
TABLE = [
    # Overages off: the limit is what was granted.
    (10,      0,       OFF, None, REJECT,  10,      10,      10,   10),
    (10,      0,       OFF, None, REJECT,  11,      10,      10,   Insufficient),
    (10,      4,       OFF, None, REJECT,  6,       10,      6,    6),
    (10,      4,       OFF, None, REJECT,  7,       10,      6,    Insufficient),
    (10,      4,       OFF, None, PARTIAL, 6,       10,      6,    6),
    (10,      4,       OFF, None, PARTIAL, 7,       10,      6,    6),
    (10,      4,       OFF, None, FORCE,   7,       10,      6,    7),
    (10,      10,      OFF, None, REJECT,  1,       10,      0,    Insufficient),
    (10,      10,      OFF, None, PARTIAL, 1,       10,      0,    Insufficient),
    (10,      10,      OFF, None, FORCE,   1,       10,      0,    1),
    # A check is covered by any meter, also by one without credits or past its limit.
    (0,       0,       OFF, None, REJECT,  0,       0,       0,    0),
    (0,       0,       OFF, None, PARTIAL, 0,       0,       0,    0),
    (0,       0,       OFF, None, FORCE,   0,       0,       0,    0),
    (10,      12,      OFF, None, REJECT,  0,       10,      0,    0),
    (10,      12,      OFF, None, PARTIAL, 0,       10,      0,    0),
    (0,       0,       OFF, None, REJECT,  1,       0,       0,    Insufficient),
    (0,       0,       OFF, None, PARTIAL, 1,       0,       0,    Insufficient),
    (0,       0,       OFF, None, FORCE,   1,       0,       0,    1),
    # More is used than the limit, as after the emergency stop: nothing is available, never less.
    (10,      12,      OFF, None, REJECT,  1,       10,      0,    Insufficient),
    (10,      12,      OFF, None, PARTIAL, 1,       10,      0,    Insufficient),
    (10,      12,      OFF, None, FORCE,   1,       10,      0,    1),
    (0,       MAX,     OFF, None, REJECT,  1,       0,       0,    Insufficient),
    (0,       MAX,     OFF, None, FORCE,   1,       0,       0,    OutOfRange),
    # While overages are off, the cap has no effect.
    (10,      4,       OFF, 0,    REJECT,  6,       10,      6,    6),
    (10,      4,       OFF, 5,    REJECT,  7,       10,      6,    Insufficient),
    (10,      4,       OFF, 5,    PARTIAL, 12,      10,      6,    6),
    (10,      4,       OFF, MAX,  REJECT,  7,       10,      6,    Insufficient),
    # On, with a cap: the limit is the cap beyond what was granted.
    (10,      4,       ON,  5,    REJECT,  11,      15,      11,   11),
    (10,      4,       ON,  5,    REJECT,  12,      15,      11,   CapExceeded),
    (10,      4,       ON,  5,    PARTIAL, 12,      15,      11,   11),
    (10,      4,       ON,  5,    FORCE,   12,      15,      11,   12),
    (10,      15,      ON,  5,    REJECT,  1,       15,      0,    CapExceeded),
    (10,      15,      ON,  5,    PARTIAL, 1,       15,      0,    CapExceeded),
    (10,      15,      ON,  5,    FORCE,   1,       15,      0,    1),
    (10,      16,      ON,  5,    REJECT,  0,       15,      0,    0),
    (0,       0,       ON,  5,    REJECT,  5,       5,       5,    5),
    # A cap of 0 allows no overage; the refusal still says that it is the cap's.
    (10,      4,       ON,  0,    REJECT,  6,       10,      6,    6),
    (10,      4,       ON,  0,    REJECT,  7,       10,      6,    CapExceeded),
    (10,      4,       ON,  0,    PARTIAL, 7,       10,      6,    6),
    (0,       0,       ON,  0,    REJECT,  0,       0,       0,    0),
    (0,       0,       ON,  0,    PARTIAL, 1,       0,       0,    CapExceeded),
    # On, without a cap: no limit.
    (10,      4,       ON,  None, REJECT,  1000,    None,    None, 1000),
    (10,      4,       ON,  None, PARTIAL, 1000,    None,    None, 1000),
    (10,      4,       ON,  None, FORCE,   1000,    None,    None, 1000),
    (0,       0,       ON,  None, REJECT,  MAX,     None,    None, MAX),
    (0,       0,       ON,  None, PARTIAL, MAX,     None,    None, MAX),
    (0,       MAX,     ON,  None, REJECT,  0,       None,    None, 0),
    # Passing the greatest amount is refused under every policy.
    (0,       1,       ON,  None, REJECT,  MAX,     None,    None, OutOfRange),
    (0,       1,       ON,  None, PARTIAL, MAX,     None,    None, OutOfRange),
    (0,       1,       ON,  None, FORCE,   MAX,     None,    None, OutOfRange),
    (0,       1,       ON,  None, REJECT,  MAX - 1, None,    None, MAX - 1),
    (0,       MAX,     ON,  None, REJECT,  1,       None,    None, OutOfRange),
    (0,       MAX,     ON,  None, PARTIAL, 1,       None,    None, OutOfRange),
    (10,      1,       OFF, None, FORCE,   MAX,     10,      9,    OutOfRange),
    (10,      1,       OFF, None, FORCE,   MAX - 1, 10,      9,    MAX - 1),
    (10,      1,       ON,  5,    FORCE,   MAX,     15,      14,   OutOfRange),
    # The limit never passes the greatest amount.
    (MAX,     0,       OFF, None, REJECT,  MAX,     MAX,     MAX,  MAX),
    (MAX,     0,       ON,  0,    REJECT,  MAX,     MAX,     MAX,  MAX),
    (MAX,     0,       ON,  1,    REJECT,  MAX,     MAX,     MAX,  MAX),
    (MAX,     1,       ON,  MAX,  PARTIAL, MAX,     MAX,     MAX - 1, MAX - 1),
    (MAX,     MAX,     ON,  MAX,  REJECT,  0,       MAX,     0,    0),
    (MAX,     MAX,     ON,  MAX,  PARTIAL, 1,       MAX,     0,    CapExceeded),
    (MAX,     MAX,     OFF, None, REJECT,  1,       MAX,     0,    Insufficient),
    (MAX,     MAX,     OFF, None, FORCE,   1,       MAX,     0,    OutOfRange),
    (0,       0,       ON,  MAX,  REJECT,  MAX,     MAX,     MAX,  MAX),
    (1,       0,       ON,  MAX,  REJECT,  MAX,     MAX,     MAX,  MAX),
    (MAX - 1, MAX - 1, ON,  1,    REJECT,  1,       MAX,     1,    1),
    (MAX - 1, MAX - 1, ON,  1,    REJECT,  2,       MAX,     1,    CapExceeded),
    # What is asked for beyond a limit is reported with what is available, however much it is.
    (10,      4,       OFF, None, REJECT,  MAX,     10,      6,    Insufficient),
    (10,      4,       OFF, None, PARTIAL, MAX,     10,      6,    6),
    (10,      4,       ON,  5,    REJECT,  MAX,     15,      11,   CapExceeded),
    (10,      4,       ON,  5,    PARTIAL, MAX,     15,      11,   11),
]
# fmt: on

COLUMNS = ("total", "used", "overages", "cap", "policy", "amount", "limit", "available", "outcome")


@pytest.mark.parametrize(COLUMNS, TABLE)
def test_the_limit_and_what_each_policy_accepts(
    *,
    total: int,
    used: int,
    overages: bool,
    cap: int | None,
    policy: OverLimitPolicy,
    amount: int,
    limit: int | None,
    available: int | None,
    outcome: int | type[Refusal],
) -> None:
    meter = meter_row(total=total, used=used, overages=overages, cap=cap)
    assert meter.limit_credits == limit
    assert available_credits(meter.limit_credits, used, 0) == available
    found = decision(meter, amount, policy)
    if isinstance(found, int):
        assert found == outcome
        return
    assert type(found) is outcome
    if isinstance(found, LimitRefusal):
        assert found.available == available
        assert found.billing_meter is meter


@pytest.mark.parametrize(
    ("total", "used", "overage"), [(0, 0, 0), (10, 10, 0), (10, 9, 0), (10, 12, 2), (0, MAX, MAX), (MAX, 0, 0)]
)
def test_overage_is_what_is_used_beyond_the_total(total: int, used: int, overage: int) -> None:
    assert overage_credits(total, used) == overage


# The ends of the range, and small numbers, among which limits are met exactly.
amounts = st.sampled_from([0, 1, MAX - 1, MAX]) | st.integers(0, 20) | st.integers(0, MAX)


@pytest.mark.slow
@given(
    total=amounts,
    used=amounts,
    overages=st.booleans(),
    cap=st.none() | amounts,
    policy=st.sampled_from(OverLimitPolicy),
    amount=amounts,
)
@example(total=MAX, used=0, overages=True, cap=MAX, policy=PARTIAL, amount=MAX)
@settings(max_examples=500, deadline=None)
def test_a_debit_is_refused_exactly_where_it_is_not_covered(
    *, total: int, used: int, overages: bool, cap: int | None, policy: OverLimitPolicy, amount: int
) -> None:
    meter = meter_row(total=total, used=used, overages=overages, cap=cap)
    limit = meter.limit_credits
    available = available_credits(limit, used, 0)

    # A limit is missing only where overages are on without a cap, and it never takes granted credits away.
    assert (limit is None) == (overages and cap is None)
    assert limit is None or total <= limit <= MAX
    assert limit is None or (available is not None and 0 <= available <= limit)

    bounded = limit is not None and policy is not FORCE
    # Where nothing bounds the debit, and only there, the greatest amount can be passed.
    passes_the_range = not bounded and used + amount > MAX
    is_covered = not bounded or available is None or amount <= available or (policy is PARTIAL and available > 0)
    accepted = decision(meter, amount, policy)
    if isinstance(accepted, AmountOutOfRange):
        assert passes_the_range
        return
    if isinstance(accepted, LimitRefusal):
        assert not is_covered
        assert type(accepted) is (SpendCapExceeded if overages else InsufficientCredits)
        assert accepted.available == available
        return
    assert isinstance(accepted, int)
    assert is_covered
    assert not passes_the_range
    assert 0 <= accepted <= amount
    assert 0 <= used + accepted <= MAX
    if bounded:
        assert accepted == 0 or (limit is not None and used + accepted <= limit)
    if policy is not PARTIAL:
        assert accepted == amount
    elif available is not None:
        assert accepted == min(amount, available)


def test_the_greatest_amount_is_that_of_64_bits() -> None:
    assert MAX_AMOUNT == 9_223_372_036_854_775_807
