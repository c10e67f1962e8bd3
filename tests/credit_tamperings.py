"""Changes behind the gateway's back of the meter `G` of `tests.ledgers.keep_credits`, and what `verify` finds then."""

from tests.ledgers import change


def entry(seq: int, values: str) -> str:
    return change("ledger_entries", values, f"meter_id = '<G>' AND seq = {seq}")


def entries_from(seq: int, values: str) -> str:
    return change("ledger_entries", values, f"meter_id = '<G>' AND seq >= {seq}")


def meter(values: str) -> str:
    return change("billing_meters", values, "id = '<G>'")


def grant(seq: int, values: str) -> str:
    return change("credit_grants", values, f"meter_id = '<G>' AND seq = {seq}")


def hold(seq: int, values: str) -> str:
    return change("holds", values, f"meter_id = '<G>' AND seq = {seq}")


#: A change of each column that belongs to grants and holds, and what is found. `@12:00:00` is a time of the books' day,
#: and `@@12:00:00` one of the day after.
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "billing_meters.held_credits": (meter("held_credits = 4"), ["<G> its held_credits is 4 and should be 5"]),
    "billing_meters.pinned_credits": (meter("pinned_credits = 6"), ["<G> its pinned_credits is 6 and should be 5"]),
    "billing_meters.open_holds": (meter("open_holds = 0"), ["<G> its open_holds is 0 and should be 1"]),
    "billing_meters.max_open_holds": (meter("max_open_holds = 5"), ["<G> its maxOpenHolds is 5 and should be None"]),
    "billing_meters.has_grants": (meter("has_grants = FALSE"), ["<G> its has_grants is False and should be True"]),
    "billing_meters.has_holds": (meter("has_holds = FALSE"), ["<G> its has_holds is False and should be True"]),
    "billing_meters.next_due_at": (
        meter("next_due_at = NULL"),
        ["<G> something of it is due at @12:15:40, and it says None"],
    ),
    "billing_meters.next_due_at, later": (
        meter("next_due_at = '2026-03-16T12:15:41+00:00'"),
        ["<G> something of it is due at @12:15:40, and it says @12:15:41"],
    ),
    "ledger_entries.held_credits_after": (
        entry(14, "held_credits_after = 4"),
        ["<G> entry 14: the held credits after it are 4 and should be 5"],
    ),
    "ledger_entries.held_credits_after, before the first hold": (
        entry(1, "held_credits_after = 4"),
        ["<G> entry 1: the held credits after it are 4 and should be 0"],
    ),
    "ledger_entries.grant_seq": (
        entry(10, "grant_seq = 2"),
        [
            "<G> entry 10: it takes 6 of the grant, of which 0 are open",
            "<G> entry 10: it ends a grant at @12:00:30 that ends at @12:01:00",
            "<G> entry 11: what was due at @12:00:30 is not written before it",
            "<G> entry 17: its draws are [[0, 81], [3, 15]] and should be [[0, 75], [3, 15]]",
        ],
    ),
    "ledger_entries.grant_seq, to none": (
        entry(11, "grant_seq = 4"),
        ["<G> entry 11: its grant is 4, which no entry before it makes"],
    ),
    "ledger_entries.grant_seq, lost": (
        entry(13, "grant_seq = NULL"),
        ["<G> entry 13: it has no grant_seq, and each GRANT_CHANGED has one"],
    ),
    "ledger_entries.grant_seq, of a grant": (
        entry(18, "grant_seq = 3"),
        ["<G> entry 18: its grant is 3 and should be 18"],
    ),
    "ledger_entries.hold_seq": (
        entry(16, "hold_seq = 14"),
        [
            "<G> entry 16: its key is 'j' and should be 'k', that of its hold",
            "<G> entry 16: the held credits after it are 5 and should be 4",
            "<G> entry 17: its draws are [[0, 81], [3, 15]] and should be [[2, 2], [0, 80], [3, 15]]",
            "<G> entry 17: the held credits after it are 5 and should be 4",
        ],
    ),
    "ledger_entries.hold_seq, to none": (
        entry(8, "hold_seq = 4"),
        ["<G> entry 8: its hold is 4, which no entry before it makes"],
    ),
    "ledger_entries.hold_seq, lost": (
        entry(8, "hold_seq = NULL"),
        [
            "<G> entry 8: its draws are [[0, 15], [6, 4], [0, 1]] and should be [[6, 4], [0, 16]]",
            "<G> entry 8: the held credits after it are 6 and should be 21",
            "<G> entry 9: the held credits after it are 0 and should be 15",
            "<G> entry 10: the held credits after it are 0 and should be 15",
        ],
    ),
    "ledger_entries.hold_seq, of a hold": (
        entry(15, "hold_seq = 14"),
        [
            "<G> entry 15: its hold is 14 and should be 15",
            "<G> entry 15: its key is 'j' and should be 'k', that of its hold",
        ],
    ),
    "ledger_entries.draws": (
        entry(4, "draws = '[[2,29],[0,11]]'"),
        [
            "<G> entry 4: its draws are [[2, 29], [0, 11]] and should be [[2, 30], [0, 10]]",
            "<G> entry 12: its draws are [[0, 10], [2, 2]] and should be [[0, 11], [2, 1]]",
            "<G> entry 14: its draws are [[2, 2], [0, 3]] and should be [[2, 1], [0, 4]]",
            "<G> grant 2: its pinned_credits is 2 and should be 1",
        ],
    ),
    "ledger_entries.draws, lost": (
        entry(4, "draws = NULL"),
        [
            "<G> entry 4: its draws are None and should be [[2, 30], [0, 10]]",
            "<G> entry 12: its draws are [[0, 10], [2, 2]] and should be [[0, 12]]",
            "<G> entry 14: its draws are [[2, 2], [0, 3]] and should be [[0, 5]]",
            "<G> grant 2: its pinned_credits is 2 and should be 0",
        ],
    ),
    "ledger_entries.draws, of an opening": (
        entry(1, "draws = '[[0,1]]'"),
        [
            "<G> entry 1: it has a draws, which no OPENING has",
            "<G> entry 1: its draws is [[0, 1]], and its meter has neither a grant nor a hold yet",
        ],
    ),
    "credit_grants.meter_id": (
        change("credit_grants", "meter_id = 'mtr_gone'", "meter_id = '<G>' AND seq = 18"),
        ["<G> grant 18: it is missing", "mtr_gone credit_grants has rows of it, and there is no such meter"],
    ),
    "credit_grants.bucket": (
        grant(18, "bucket = 1"),
        ["<G> grant 18: it is missing", "<G> credit_grants has rows of it, and there is no such meter"],
    ),
    "credit_grants.seq": (grant(18, "seq = 19"), ["<G> grant 18: it is missing", "<G> grant 19: no entry makes it"]),
    "credit_grants.key": (grant(18, "key = 'T'"), ["<G> grant 18: its key is T and should be t"]),
    "credit_grants.amount": (grant(18, "amount = 7"), ["<G> grant 18: its amount is 7 and should be 6"]),
    "credit_grants.priority": (grant(18, "priority = 51"), ["<G> grant 18: its priority is 51 and should be 50"]),
    "credit_grants.category": (
        grant(18, "category = 'promotional'"),
        ["<G> grant 18: its category is promotional and should be paid"],
    ),
    "credit_grants.expires_at": (
        grant(2, "expires_at = '2026-03-16T12:01:01+00:00'"),
        ["<G> grant 2: its expires_at is @12:01:01 and should be @12:01:00"],
    ),
    "credit_grants.expires_at, lost": (
        grant(2, "expires_at = NULL"),
        ["<G> grant 2: its expires_at is None and should be @12:01:00"],
    ),
    "credit_grants.open_credits": (
        grant(3, "open_credits = 1"),
        [
            "<G> grant 3: its open_credits is 1 and should be 0",
            "<G> some of its usage is paid by no credit, and some of its credits are open",
        ],
    ),
    "credit_grants.pinned_credits": (
        grant(2, "pinned_credits = 1"),
        ["<G> grant 2: its pinned_credits is 1 and should be 2"],
    ),
    "credit_grants.drawn_credits": (
        grant(3, "drawn_credits = 14"),
        ["<G> grant 3: its drawn_credits is 14 and should be 15"],
    ),
    "credit_grants.covered_credits": (
        grant(18, "covered_credits = 5"),
        ["<G> grant 18: its covered_credits is 5 and should be 6"],
    ),
    "credit_grants.expired_credits": (
        grant(6, "expired_credits = 5"),
        ["<G> grant 6: its expired_credits is 5 and should be 6"],
    ),
    "credit_grants.revoked_credits": (
        grant(3, "revoked_credits = 4"),
        ["<G> grant 3: its revoked_credits is 4 and should be 5"],
    ),
    "credit_grants.is_closed": (
        grant(3, "is_closed = TRUE"),
        ["<G> grant 3: its is_closed is True and should be False"],
    ),
    "credit_grants.created_at": (
        grant(3, "created_at = '2026-03-16T12:00:01+00:00'"),
        ["<G> grant 3: its created_at is @12:00:01 and should be @12:00:00"],
    ),
    "credit_grants.reason": (grant(2, "reason = 'sorry'"), ["<G> grant 2: its reason is sorry and should be welcome"]),
    "holds.meter_id": (
        change("holds", "meter_id = 'mtr_gone'", "meter_id = '<G>' AND seq = 15"),
        ["<G> hold 15: it is missing", "mtr_gone holds has rows of it, and there is no such meter"],
    ),
    "holds.bucket": (
        hold(15, "bucket = 1"),
        ["<G> hold 15: it is missing", "<G> holds has rows of it, and there is no such meter"],
    ),
    "holds.seq": (hold(15, "seq = 13"), ["<G> hold 15: it is missing", "<G> hold 13: no entry makes it"]),
    "holds.hold_id": (hold(15, "hold_id = 'J'"), ["<G> hold 15: its hold_id is J and should be j"]),
    "holds.amount": (hold(15, "amount = 3"), ["<G> hold 15: its amount is 3 and should be 4"]),
    "holds.requested_amount": (
        hold(15, "requested_amount = 5"),
        ["<G> hold 15: its requested_amount is 5 and should be 4"],
    ),
    "holds.expires_in_seconds": (
        hold(14, "expires_in_seconds = 901"),
        ["<G> hold 14: its expires_at is @12:15:40 and should be @12:15:41 to @@12:00:40"],
    ),
    "holds.expires_in_seconds, to nothing": (
        hold(14, "expires_in_seconds = 0"),
        ["<G> hold 14: its expires_at is @12:15:40 and should be @12:00:40 to @@12:00:40"],
    ),
    "holds.state": (
        hold(15, "state = 'expired'"),
        [
            "<G> hold 15: its state is expired and should be released",
            "<G> hold 15: its expires_at is @12:15:40, and it expired at @12:00:40",
        ],
    ),
    "holds.state, opened again": (
        hold(15, "state = 'open'"),
        ["<G> hold 15: its state is open and should be released"],
    ),
    "holds.committed_amount": (
        hold(5, "committed_amount = 19"),
        ["<G> hold 5: its committed_amount is 19 and should be 20"],
    ),
    "holds.expires_at, earlier": (
        hold(14, "expires_at = '2026-03-16T12:15:39+00:00'"),
        [
            "<G> hold 14: its expires_at is @12:15:39 and should be @12:15:40 to @@12:00:40",
            "<G> something of it is due at @12:15:39, and it says @12:15:40",
        ],
    ),
    "holds.expires_at, before it was closed": (
        hold(15, "expires_at = '2026-03-16T12:00:40+00:00'"),
        [
            "<G> hold 15: its expires_at is @12:00:40 and should be @12:15:40 to @@12:00:40",
            "<G> hold 15: its expires_at is @12:00:40, and it was closed later, at @12:00:40",
        ],
    ),
    "holds.expires_at, later than a day": (
        hold(15, "expires_at = '2026-03-17T12:00:41+00:00'"),
        ["<G> hold 15: its expires_at is @@12:00:41 and should be @12:15:40 to @@12:00:40"],
    ),
    "holds.expires_at, of an expired one": (
        hold(7, "expires_at = '2026-03-16T12:00:21+00:00'"),
        ["<G> hold 7: its expires_at is @12:00:21, and it expired at @12:00:20"],
    ),
    "holds.created_at": (
        hold(15, "created_at = '2026-03-16T12:00:41+00:00'"),
        [
            "<G> hold 15: its created_at is @12:00:41 and should be @12:00:40",
            "<G> hold 15: its expires_at is @12:15:40 and should be @12:15:41 to @@12:00:41",
        ],
    ),
    "holds.closed_at": (
        hold(15, "closed_at = '2026-03-16T12:00:41+00:00'"),
        ["<G> hold 15: its closed_at is @12:00:41 and should be @12:00:40"],
    ),
    "holds.closed_at, lost": (
        hold(15, "closed_at = NULL"),
        ["<G> hold 15: its closed_at is None and should be @12:00:40"],
    ),
    "holds.pins": (
        hold(14, "pins = '[[2,1],[0,4]]'"),
        ["<G> hold 14: its pins is [[2, 1], [0, 4]] and should be [[2, 2], [0, 3]]"],
    ),
    "holds.metadata": (hold(14, "metadata = '{\"a\":1}'"), ["<G> hold 14: its metadata is {'a': 1} and should be {}"]),
}

#: The columns of which what the database holds is the one record.
RECORDED_ONCE = {"credit_grants.metadata"}

NO_STATE = (
    "it cannot be read: 'gone' is not among the defined enum values. Enum name: holdstate. Possible values: open,"
    " committed, released, expired"
)

#: Rules that are broken together, and what is found.
BROKEN: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "the metadata of a grant": ([grant(18, "metadata = '{\"a\":1}'")], []),
    "the end of a hold, and the time that it was asked for": (
        [hold(14, "expires_in_seconds = 60"), hold(15, "expires_at = '2026-03-16T12:20:40+00:00'")],
        [],
    ),
    "a draw of a grant after its end": (
        [entry(17, "draws = '[[6,6],[0,81],[3,9]]'"), grant(6, "drawn_credits = 10, expired_credits = 0")],
        [
            "<G> entry 17: its draws are [[6, 6], [0, 81], [3, 9]] and should be [[0, 81], [3, 15]]",
            "<G> grant 6: its drawn_credits is 10 and should be 4",
            "<G> grant 6: its expired_credits is 0 and should be 6",
        ],
    ),
    "an expiry before the grant's end": (
        [entry(10, "recorded_at = '2026-03-16T12:00:29+00:00'")],
        ["<G> entry 10: it ends a grant at @12:00:29 that ends at @12:00:30"],
    ),
    "an expiry that is written after another entry of its moment": (
        [entry(8, "recorded_at = '2026-03-16T12:00:30+00:00'")],
        ["<G> entry 8: what was due at @12:00:30 is not written before it"],
    ),
    "an expiry of less than is open": (
        [entry(10, "amount = 5")],
        [
            "<G> entry 10: the total credits after it are 154 and should be 155",
            "<G> entry 10: it takes 5 of the grant, of which 6 are open",
        ],
    ),
    "an expiry that was written late": (
        [entry(10, "recorded_at = '2026-03-16T12:00:40+00:00'")],
        ["<G> entry 10: what was due at @12:00:30 is not written before it"],
    ),
    "an expiry that is missing": (
        ["DELETE FROM ledger_entries WHERE meter_id = '<G>' AND seq = 10"],
        [
            "<G> entry 11: it follows entry 9",
            "<G> entry 11: the total credits after it are 149 and should be 155",
            "<G> entry 11: what was due at @12:00:30 is not written before it",
            "<G> entry 17: its draws are [[0, 81], [3, 15]] and should be [[0, 75], [3, 15]]",
        ],
    ),
    "a hold of less than was asked": (
        [entry(14, "requested_amount = 6")],
        ["<G> entry 14: by REJECT it took 5 of 6 and should have taken 6"],
    ),
    "a hold that is resolved twice": (
        [entry(16, "key = 'h', hold_seq = 5, amount = 15")],
        [
            "<G> entry 16: it closes the hold 'h', which is committed already",
            "<G> entry 17: its draws are [[0, 81], [3, 15]] and should be [[0, 77], [3, 15]]",
            "<G> entry 17: the held credits after it are 5 and should be 9",
            "<G> entry 18: the held credits after it are 5 and should be 9",
        ],
    ),
    "a hold that was committed for more, by no entry": (
        [hold(5, "committed_amount = 25")],
        ["<G> hold 5: its committed_amount is 25 and should be 20"],
    ),
    "pins beyond what is held": (
        [hold(14, "pins = '[[2,2],[0,4]]'"), meter("pinned_credits = 6"), entry(14, "draws = '[[2,2],[0,4]]'")],
        [
            "<G> entry 14: its draws are [[2, 2], [0, 4]] and should be [[2, 2], [0, 3]]",
            "<G> hold 14: its pins is [[2, 2], [0, 4]] and should be [[2, 2], [0, 3]]",
            "<G> its pinned_credits is 6 and should be 5",
        ],
    ),
    "the base before a grant that is used first": (
        [entry(4, "draws = '[[0,40]]'")],
        [
            "<G> entry 4: its draws are [[0, 40]] and should be [[2, 30], [0, 10]]",
            "<G> entry 12: its draws are [[0, 10], [2, 2]] and should be [[0, 12]]",
            "<G> entry 14: its draws are [[2, 2], [0, 3]] and should be [[0, 5]]",
            "<G> grant 2: its pinned_credits is 2 and should be 0",
        ],
    ),
    "draws in another order": (
        [entry(4, "draws = '[[0,10],[2,30]]'")],
        [
            "<G> entry 4: its draws are [[0, 10], [2, 30]] and should be [[2, 30], [0, 10]]",
            "<G> entry 12: its draws are [[0, 10], [2, 2]] and should be [[2, 12]]",
            "<G> entry 14: its draws are [[2, 2], [0, 3]] and should be [[2, 5]]",
            "<G> entry 15: its draws are [[0, 4]] and should be [[2, 4]]",
        ],
    ),
    "a void that gives back the first draw first": (
        [entry(12, "draws = '[[2,12]]'")],
        ["<G> entry 12: its draws are [[2, 12]] and should be [[0, 10], [2, 2]]"],
    ),
    "credits that are open beside usage that none has paid": (
        [grant(18, "open_credits = 6, drawn_credits = 0, covered_credits = 0")],
        [
            "<G> grant 18: its open_credits is 6 and should be 0",
            "<G> grant 18: its drawn_credits is 0 and should be 6",
            "<G> grant 18: its covered_credits is 0 and should be 6",
            "<G> some of its usage is paid by no credit, and some of its credits are open",
        ],
    ),
    "a grant that no entry makes": (
        [
            (
                "INSERT INTO credit_grants SELECT meter_id, 17, 'z', 1, 50, 'paid', NULL, 1, 0, 0, 0, 0, 0, is_closed,"
                " created_at, NULL, metadata, 0 FROM credit_grants WHERE meter_id = '<G>' AND seq = 18"
            )
        ],
        [
            "<G> grant 17: no entry makes it",
            "<G> some of its usage is paid by no credit, and some of its credits are open",
        ],
    ),
    "a grant that is gone": (
        ["DELETE FROM credit_grants WHERE meter_id = '<G>' AND seq = 3"],
        ["<G> grant 3: it is missing"],
    ),
    "a hold that is gone": (["DELETE FROM holds WHERE meter_id = '<G>' AND seq = 14"], ["<G> hold 14: it is missing"]),
    "all of its grants and holds": (
        ["DELETE FROM credit_grants WHERE meter_id = '<G>'", "DELETE FROM holds WHERE meter_id = '<G>'"],
        [
            "<G> grant 2: it is missing",
            "<G> grant 3: it is missing",
            "<G> grant 6: it is missing",
            "<G> grant 18: it is missing",
        ],
    ),
    "a hold that no entry makes": (
        [
            (
                "INSERT INTO holds SELECT meter_id, 19, 'made up', amount, requested_amount, expires_in_seconds, state,"
                " committed_amount, expires_at, created_at, closed_at, pins, metadata, 0 FROM holds"
                " WHERE meter_id = '<G>' AND seq = 15"
            )
        ],
        ["<G> hold 19: no entry makes it"],
    ),
    "a hold that cannot be read, and is closed": (
        [hold(15, "state = 'gone'")],
        [f"<G> hold 15: {NO_STATE}"],
    ),
    "a hold that cannot be read, and is open": (
        [hold(14, "state = 'gone'")],
        [f"<G> hold 14: {NO_STATE}"],
    ),
    "a grant that cannot be read": (
        [grant(18, "category = 'gone'")],
        [
            (
                "<G> of its grants: it cannot be read: 'gone' is not among the defined enum values. Enum name:"
                " creditgrantcategory. Possible values: paid, promotional"
            )
        ],
    ),
    **{
        f"the amount of entry {seq}": ([entry(seq, f"amount = {amount}")], [f"<G> entry {seq}: its amount is {amount}"])
        for seq, amount in (
            *((1, -1), (4, 0), (5, 0), (9, 0), (10, 0)),
            *((11, -1), (12, 0), (13, 1), (16, 0), (18, 0)),
        )
    },
    **{
        f"who recorded entry {seq}": (
            [entry(seq, "recorded_by = '<K_reading>'")],
            [f"<G> entry {seq}: it was recorded by <K_reading>, a key without {scope}"],
        )
        for seq, scope in (
            *((2, "billing:write"), (5, "usage:write"), (11, "billing:write")),
            *((13, "billing:write"), (16, "usage:write")),
        )
    },
    **{
        f"who recorded entry {seq}, to a key": (
            [entry(seq, f"recorded_by = '<K_reading>'{more}")],
            [f"<G> entry {seq}: it was recorded by <K_reading>, and no key records an {kind}"],
        )
        for seq, kind, more in (
            (9, "HOLD_EXPIRY", ""),
            (10, "EXPIRY", ""),
            (10, "EXPIRY", ", recorded_at = '2026-03-16T12:00:20+00:00'"),
        )
    },
    **{
        f"a field that entry {seq} has, lost": (
            [entry(seq, f"{field} = NULL")],
            [f"<G> entry {seq}: it has no {field}, and each {kind} has one"],
        )
        for seq, kind, field in (
            *((3, "GRANT", "key"), (9, "HOLD_EXPIRY", "key"), (10, "EXPIRY", "grant_seq")),
            *((11, "REVOCATION", "grant_seq"), (13, "GRANT_CHANGED", "key"), (14, "HOLD", "policy")),
            (16, "RELEASE", "key"),
        )
    },
    **{
        f"a field that entry {seq} has not": (
            [entry(seq, f"{field} = '{value}'")],
            [f"<G> entry {seq}: it has a {field}, which no {kind} has"],
        )
        for seq, kind, field, value in (
            *((3, "GRANT", "policy", "force"), (9, "HOLD_EXPIRY", "reason", "x"), (10, "EXPIRY", "key", "x")),
            *((11, "REVOCATION", "day", "2026-03-16"), (13, "GRANT_CHANGED", "usage_name", "x")),
            *((14, "HOLD", "reason", "x"), (12, "VOID", "policy", "force"), (16, "RELEASE", "reason", "x")),
        )
    },
    "the priority at a grant": (
        [entry(3, """metadata = replace(metadata, '50', '0')""")],
        [
            "<G> entry 4: its draws are [[2, 30], [0, 10]] and should be [[3, 20], [2, 20]]",
            "<G> entry 5: its draws are [[0, 15]] and should be [[2, 10], [0, 5]]",
            "<G> entry 8: its draws are [[0, 15], [6, 4], [0, 1]] and should be [[2, 10], [0, 5], [6, 4], [0, 1]]",
            "<G> entry 11: it takes 5 of the grant, of which 0 are open",
        ],
    ),
    "the priority at a grant, to no number": (
        [entry(3, """metadata = replace(metadata, '50', '"x"')""")],
        ["<G> entry 3: what it does to grants and holds cannot be replayed: priority"],
    ),
    "the old priority of a change": (
        [entry(13, """metadata = '{"priority":[11,20]}'""")],
        ["<G> entry 13: the priority of the grant was 11 before it and should be 10"],
    ),
    "the terms of a grant, lost": (
        [entry(3, """metadata = '{"priority":[null,50]}'""")],
        ["<G> entry 3: it records priority, and should record category, expiresAt, priority"],
    ),
    "a hold's expiry before its end": (
        [entry(9, "recorded_at = '2026-03-16T12:00:19+00:00'")],
        ["<G> hold 7: its closed_at is @12:00:20 and should be @12:00:19"],
    ),
    "a term that there is not": (
        [entry(13, """metadata = '{"colour":[1,2]}'""")],
        [
            "<G> entry 13: it changes colour, which is not a term that changes",
            "<G> grant 2: its priority is 20 and should be 10",
        ],
    ),
}
