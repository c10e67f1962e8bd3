"""The limit rule: how much of a meter may be used. All amounts are credits, 0 to 2**63 - 1."""

from resolvers.values import MAX_AMOUNT


def limit_credits(total_credits: int, *, allow_overages: bool, spend_cap: int | None) -> int | None:
    """Return the most that may be used of a meter, or None where there is no limit.

    Overages off: what was granted. On, with a cap: the cap more, but never past the greatest amount. On, without: no
    limit. The cap bounds overage only, so that a paid refill is always spendable.
    """
    if not allow_overages:
        return total_credits
    if spend_cap is None:
        return None
    return min(total_credits + spend_cap, MAX_AMOUNT)


def available_credits(limit: int | None, used_credits: int, held_credits: int) -> int | None:
    """Return what a debit may still take, or None where there is no limit.

    It is 0 where more is used and held than the limit, as after the cap was lowered or overages were turned off.
    """
    return None if limit is None else max(0, limit - used_credits - held_credits)


def available_bits(limit: int | None, used_credits: int, held_credits: int) -> int | None:
    """Return how many binary digits the available credits have, or None where there is no limit.

    Fewer than `x` credits never have more of them than `x - 1`, so an index of them finds the meters that run low.
    """
    return None if limit is None else max(0, limit - used_credits - held_credits).bit_length()


def overage_credits(total_credits: int, used_credits: int) -> int:
    """Return what was used beyond what was granted."""
    return max(0, used_credits - total_credits)
