"""The limit's statements for meters with credit grants, and for holds.

What is due of a meter, a hold that expires or a grant that ends, is not written here: there is none in the benchmark,
and a meter that has some is refused.
"""

NAMES = "org_id = $1 AND environment = $2 AND workspace_id = $3 AND external_meter_id = $4"

NOTHING_IS_DUE = "(next_due_at IS NULL OR next_due_at > $7)"

#: What an operator allows.
MAX_OPEN_HOLDS = 1_000

#: How long a hold is open, in seconds.
HOLD_SECONDS = 900

# What an amount draws of each grant and of the base, whose `seq` is 0, by the order of use. The base's open credits are
# what is unspent and no grant's.
_DRAWN = """
WITH usable AS (
    SELECT seq, open_credits, priority, expires_at, category FROM credit_grants
    WHERE meter_id = {meter_id} AND (open_credits > 0 OR pinned_credits > 0)
),
current AS (
    SELECT * FROM usable WHERE expires_at IS NULL OR expires_at > {now}
    UNION ALL SELECT 0, {greatest}(0, {unspent} - coalesce(sum(open_credits), 0)), 50, NULL, 'paid' FROM usable
),
in_order AS (
    SELECT seq, open_credits, sum(open_credits) OVER (
        ORDER BY priority, expires_at NULLS LAST, category = 'paid', seq ROWS UNBOUNDED PRECEDING
    ) - open_credits AS before
    FROM current
),
drawn AS (
    SELECT seq, {least}(open_credits, {amount} - before) AS credits, before FROM in_order
    WHERE open_credits > 0 AND before < {amount}
)"""

SQLITE_DRAWN = f"""{_DRAWN.format(meter_id="$1", unspent="$2", amount="$3", now="$4", greatest="max", least="min")}
SELECT credits, seq FROM drawn ORDER BY before
"""  # noqa: S608  # Nothing but the text above goes in.

SQLITE_DRAW = """
UPDATE credit_grants SET open_credits = open_credits - $3, drawn_credits = drawn_credits + $3
WHERE meter_id = $1 AND seq = $2
"""


def postgresql_debit_of_grants(debit: str, day: str, entry: str) -> str:
    """Return the function that records an event, also on a meter with grants, made of the statements without.

    A statement reads the grants as they were when it began, which may be before it has waited for the meter's lock. So
    there are two, and as a function they are one round trip. Its parameters are those of the debit.
    """
    drawn = _DRAWN.format(
        meter_id="m.id",
        unspent="(m.total_credits - m.used_credits + $6 - m.pinned_credits)",
        amount="$6",
        now="$7",
        greatest="greatest",
        least="least",
    )
    return f"""
CREATE OR REPLACE FUNCTION limit_debit(text, text, text, text, text, bigint, timestamptz, text, text)
RETURNS SETOF billing_meters LANGUAGE plpgsql AS $$
DECLARE
    m billing_meters;
BEGIN
    {debit} RETURNING * INTO m;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    {drawn},
    draw AS (
        UPDATE credit_grants g
        SET open_credits = g.open_credits - drawn.credits, drawn_credits = g.drawn_credits + drawn.credits
        FROM drawn WHERE g.meter_id = m.id AND g.seq = drawn.seq
    ),
    usage_day AS ({day.format("VALUES (m.id, ($7 AT TIME ZONE m.timezone)::date, $8, $6)")})
    {entry}
    SELECT m.id, m.last_seq, 'usage', $5, $6, m.total_credits, m.used_credits, m.limit_credits,
        $8, ($7 AT TIME ZONE m.timezone)::date, $6, 'reject', $7, $9, '{{}}', m.held_credits,
        (SELECT '[' || string_agg('[' || seq || ',' || credits || ']', ',' ORDER BY before) || ']' FROM drawn);
    RETURN NEXT m;
END
$$
"""  # noqa: S608  # Nothing but our own statements goes in.


# The meters of the benchmark's holds have no grants and no overages: what is held of them is the base's.
_HOLD = f"""
UPDATE billing_meters SET held_credits = held_credits + $6, pinned_credits = pinned_credits + $6,
    open_holds = open_holds + 1, has_holds = true,
    next_due_at = CASE WHEN next_due_at < $8 THEN next_due_at ELSE $8 END, last_seq = last_seq + 1, updated_at = $7
WHERE {NAMES} AND NOT has_grants AND NOT allow_overages AND limit_credits - used_credits - held_credits >= $6
    AND open_holds < coalesce(max_open_holds, {MAX_OPEN_HOLDS}) AND open_holds < {MAX_OPEN_HOLDS} AND {NOTHING_IS_DUE}
    AND NOT EXISTS (
        SELECT 1 FROM ledger_entries e
        WHERE e.meter_id = billing_meters.id AND e.kind IN ('usage', 'hold') AND e.key = $5
    )
RETURNING *"""  # noqa: S608  # As above.

_HOLD_ROW = """
INSERT INTO holds (meter_id, seq, hold_id, amount, requested_amount, expires_in_seconds, state, expires_at, created_at,
    pins, metadata)
"""

_HOLD_ENTRY = """
INSERT INTO ledger_entries (meter_id, seq, kind, key, amount, total_credits_after, used_credits_after, limit_credits,
    requested_amount, policy, recorded_at, recorded_by, metadata, held_credits_after, hold_seq, draws)
"""

POSTGRESQL_HOLD = f"""
WITH meter AS ({_HOLD}),
hold AS (
    {_HOLD_ROW}
    SELECT id, last_seq, $5, $6, $6, {HOLD_SECONDS}, 'open', $8, $7, '[[0,' || $6 || ']]', '{{}}' FROM meter
),
entry AS (
    {_HOLD_ENTRY}
    SELECT id, last_seq, 'hold', $5, $6, total_credits, used_credits, limit_credits,
        $6, 'reject', $7, $9, '{{}}', held_credits, last_seq, '[[0,' || $6 || ']]'
    FROM meter
)
SELECT * FROM meter
"""  # noqa: S608  # As above.

SQLITE_HOLD = _HOLD
SQLITE_HOLD_ROW = (
    f"{_HOLD_ROW} VALUES ($1, $2, $3, $4, $4, {HOLD_SECONDS}, 'open', $5, $6, '[[0,' || $4 || ']]', '{{}}')"
)
SQLITE_HOLD_ENTRY = f"""{_HOLD_ENTRY}
VALUES ($1, $2, 'hold', $3, $4, $5, $6, $7, $4, 'reject', $8, $9, '{{}}', $10, $2, '[[0,' || $4 || ']]')
"""

# Up to what is held a commit is always accepted, and no more is asked for. The hold is locked before its meter; nothing
# else locks both.
_CLOSE = f"""
UPDATE holds SET state = 'committed', committed_amount = $6, closed_at = $7 FROM billing_meters
WHERE {NAMES} AND {NOTHING_IS_DUE} AND holds.meter_id = billing_meters.id AND hold_id = $5 AND state = 'open'
    AND expires_at > $7 AND amount >= $6
RETURNING holds.meter_id, seq, amount"""  # noqa: S608  # As above.

# Of what is due later only the meter's last hold is known to be none of it.
_COMMIT = """
UPDATE billing_meters SET used_credits = used_credits + {credits}, held_credits = held_credits - {held},
    pinned_credits = pinned_credits - {held}, open_holds = open_holds - 1,
    next_due_at = CASE WHEN open_holds > 1 OR has_grants THEN next_due_at END,
    last_seq = last_seq + 1, updated_at = {now}
"""

_COMMIT_ENTRY = """
INSERT INTO ledger_entries (meter_id, seq, kind, key, amount, total_credits_after, used_credits_after, limit_credits,
    usage_name, day, requested_amount, policy, recorded_at, recorded_by, metadata, held_credits_after, hold_seq, draws)
"""


def postgresql_commit(day: str) -> str:
    """Return the statement that commits a hold, made of the one that adds to a usage day."""
    return f"""
WITH hold AS ({_CLOSE}),
meter AS (
    {_COMMIT.format(credits="$6", held="hold.amount", now="$7")} FROM hold WHERE billing_meters.id = hold.meter_id
    RETURNING billing_meters.*, hold.seq AS hold_seq, ($7 AT TIME ZONE timezone)::date AS day
),
usage_day AS ({day.format("SELECT id, day, $8, $6 FROM meter")}),
entry AS (
    {_COMMIT_ENTRY}
    SELECT id, last_seq, 'usage', $5, $6, total_credits, used_credits, limit_credits,
        $8, day, $6, 'partial', $7, $9, '{{}}', held_credits, hold_seq, '[[0,' || $6 || ']]'
    FROM meter
)
SELECT * FROM meter
"""  # noqa: S608  # As above.


SQLITE_CLOSE = _CLOSE.replace("holds.meter_id, seq", "meter_id, seq")
SQLITE_COMMIT = f"{_COMMIT.format(credits='$2', held='$3', now='$4')} WHERE id = $1 RETURNING *"
SQLITE_COMMIT_ENTRY = f"""{_COMMIT_ENTRY}
VALUES ($1, $2, 'usage', $3, $4, $5, $6, $7, $8, $9, $4, 'partial', $10, $11, '{{}}', $12, $13, '[[0,' || $4 || ']]')
"""
