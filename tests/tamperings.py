"""Changes behind the gateway's back of the meter `M` of `tests.ledgers.keep_books`, and what `verify` finds then.

The sums still agree where they can. Ids stand for themselves, like `<M>`.
"""

from tests.ledgers import change


def entry(seq: int, values: str) -> str:
    return change("ledger_entries", values, f"meter_id = '<M>' AND seq = {seq}")


def entries_from(seq: int, values: str) -> str:
    return change("ledger_entries", values, f"meter_id = '<M>' AND seq >= {seq}")


def setting(seq: int, name: str, old: str, new: str) -> str:
    """Return the statement that changes what an entry records of one setting."""
    return entry(seq, f"""metadata = replace(metadata, '"{name}":{old}', '"{name}":{new}')""")


def meter(values: str) -> str:
    return change("billing_meters", values, "id = '<M>'")


def day(day_: str, values: str) -> str:
    return change("usage_days", values, f"meter_id = '<M>' AND day = '{day_}'")


def new_day(day_: str, usage_name: str, total: int) -> str:
    values = f"'<M>', '{day_}', '{usage_name}', {total}"
    return f"INSERT INTO usage_days (meter_id, day, usage_name, total_usage) VALUES ({values})"  # noqa: S608  # Its values are written in this file.


def key(key_: str, values: str) -> str:
    return change("idempotency_keys", values, f"key = '{key_}'")


def session(values: str) -> str:
    return change("api_keys", values, "id = '<S>'")


def one_less(seq: int, day_: str, amount: str) -> list[str]:
    """Return the statements by which a debit has taken another amount, and everything agrees with that."""
    return [
        entry(seq, f"amount = amount {amount}"),
        entries_from(seq, f"used_credits_after = used_credits_after {amount}"),
        day(day_, f"total_usage = total_usage {amount}"),
        meter(f"used_credits = used_credits {amount}"),
    ]


LIMITS = (150, 150, 150, 150, 170, 170, 170, 180)
MADE = "which does not lead to it"
NOWHERE = "leads to it, and nothing was made of that kind and tenant by it"

TAMPERINGS: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    # Settings without a SETTINGS entry.
    "the cap of the meter, and its limit": (
        [meter("spend_cap = 1000, limit_credits = 1120, available_bits = 10")],
        ["<M> its spendCap is 1000 and should be 60", "<M> its limit is 1120 and should be 180"],
    ),
    "the cap of the meter, removed": (
        [meter("spend_cap = NULL, limit_credits = NULL, available_bits = NULL")],
        ["<M> its spendCap is None and should be 60", "<M> its limit is None and should be 180"],
    ),
    "the overage switch of the meter": (
        [meter("allow_overages = FALSE, limit_credits = 120, available_bits = 0")],
        ["<M> its allowOverages is False and should be True", "<M> its limit is 120 and should be 180"],
    ),
    "the limit of the meter": (
        [meter("limit_credits = 1120, available_bits = 10")],
        ["<M> its limit is 1120 and should be 180"],
    ),
    "the customer of the meter": (
        [meter("customer_id = '<C_customer>'")],
        ["<M> its customerId is <C_customer> and should be <C_second>"],
    ),
    "the customer of the meter, removed": (
        [meter("customer_id = NULL")],
        ["<M> its customerId is None and should be <C_second>"],
    ),
    "the customer of the meter, to another tenant's": (
        [meter("customer_id = '<C_other>'")],
        [
            "<M> its customerId is <C_other> and should be <C_second>",
            "<M> its customer <C_other> is missing, or another tenant's",
        ],
    ),
    "the customer of the meter, to another environment's, with its entry": (
        [
            meter("customer_id = '<C_live>'"),
            setting(8, "customerId", '["<C_customer>","<C_second>"]', '["<C_customer>","<C_live>"]'),
        ],
        ["<M> its customer <C_live> is missing, or another tenant's"],
    ),
    "the zone of the meter": (
        [meter("timezone = 'Europe/Zurich'")],
        ["<M> its timezone is Europe/Zurich and should be America/New_York"],
    ),
    "the workspace of the meter": (
        [meter("workspace_id = 'elsewhere'")],
        ["<M> its workspaceId is elsewhere and should be w"],
    ),
    "the external id of the meter": (
        [meter("external_meter_id = 'n'")],
        ["<M> its externalMeterId is n and should be M"],
    ),
    "the organization of the meter": (
        [meter("org_id = '<other_org>', external_meter_id = 'moved', customer_id = '<C_other>'")],
        [
            "<M> its orgId is <other_org> and should be <org>",
            "<M> its externalMeterId is moved and should be M",
            "<M> its customerId is <C_other> and should be <C_second>",
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "the environment of the meter": (
        [meter("environment = 'live', customer_id = NULL")],
        [
            "<M> its environment is live and should be sandbox",
            "<M> its customerId is None and should be <C_second>",
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    # What the ledger records of settings.
    "the cap at the opening": (
        [setting(1, "spendCap", '[null,"50"]', '[null,"70"]')],
        [
            *[
                f"<M> entry {seq}: its limit is {LIMITS[seq - 1]} and should be {LIMITS[seq - 1] + 20}"
                for seq in (1, 2)
            ],
            "<M> entry 3: its limit is 150 and should be 170",
            "<M> entry 3: by PARTIAL it took 140 of 200 and should have taken 160",
            *[
                f"<M> entry {seq}: its limit is {LIMITS[seq - 1]} and should be {LIMITS[seq - 1] + 20}"
                for seq in (4, 5, 6, 7)
            ],
            "<M> entry 8: its spendCap was '50' before it and should be '70'",
            "<M> the idempotency key 'open' has the digest of another request",
        ],
    ),
    "the settings at the opening, lost": (
        [entry(1, "metadata = '{}'")],
        ["<M> entry 1: it has no metadata, and each OPENING has one"],
    ),
    "one setting at the opening, lost": (
        [setting(1, "timezone", '[null,"America/New_York"]', "1").replace('timezone":1', 'zone":[null,1]')],
        [
            (
                "<M> entry 1: it records allowOverages, customerId, environment, externalMeterId, orgId, spendCap,"
                " workspaceId, zone, and should record allowOverages, customerId, environment, externalMeterId,"
                " maxOpenHolds, orgId, spendCap, timezone, workspaceId"
            )
        ],
    ),
    "the old value at the opening": (
        [setting(1, "spendCap", '[null,"50"]', '["40","50"]')],
        ["<M> entry 1: its spendCap was '40' before it and should be None"],
    ),
    "a setting that the opening has no more": (
        [entry(1, """metadata = replace(metadata, '"timezone":[null,"America/New_York"],', '')""")],
        [
            (
                "<M> entry 1: it records allowOverages, customerId, environment, externalMeterId, orgId, spendCap,"
                " workspaceId, and should record allowOverages, customerId, environment, externalMeterId, maxOpenHolds,"
                " orgId, spendCap, timezone, workspaceId"
            )
        ],
    ),
    "the old value of a change": (
        [setting(8, "spendCap", '["50","60"]', '["55","60"]')],
        ["<M> entry 8: its spendCap was '55' before it and should be '50'"],
    ),
    "a change of what never changes": (
        [setting(8, "spendCap", '["50","60"]', '["50","60"],"timezone":["America/New_York","UTC"]')],
        [
            (
                "<M> entry 8: it records customerId, spendCap, timezone, and should record allowOverages, customerId,"
                " maxOpenHolds, spendCap"
            ),
            "<M> entry 8: its limit is 180 and should be 170",
            "<M> its spendCap is 60 and should be 50",
            "<M> its customerId is <C_second> and should be <C_customer>",
            "<M> its limit is 180 and should be 170",
        ],
    ),
    "a change that changes nothing": (
        [setting(8, "spendCap", '["50","60"]', '["50","60"],"allowOverages":[true,true]')],
        ["<M> entry 8: its allowOverages stays True"],
    ),
    # Limits at the decisions.
    "the limits of entries, raised": (
        [entries_from(1, "limit_credits = limit_credits + 1000")],
        [f"<M> entry {seq}: its limit is {limit + 1000} and should be {limit}" for seq, limit in enumerate(LIMITS, 1)],
    ),
    "the limits of entries, removed": (
        [entries_from(2, "limit_credits = NULL")],
        [f"<M> entry {seq}: its limit is None and should be {limit}" for seq, limit in enumerate(LIMITS, 1) if seq > 1],
    ),
    # What policies accept.
    "a REJECT that took less": (
        [*one_less(2, "2026-03-16", "- 1"), *one_less(3, "2026-03-15", "+ 1")],
        [
            "<M> entry 2: by REJECT it took 9 of 10 and should have taken 10",
        ],
    ),
    "a REJECT that took more": (
        [entry(2, "requested_amount = 9")],
        ["<M> entry 2: by REJECT it took 10 of 9 and should have taken 9"],
    ),
    "a FORCE that took more": (
        one_less(4, "2026-03-16", "+ 1"),
        ["<M> entry 4: by FORCE it took 8 of 7 and should have taken 7"],
    ),
    "a FORCE that took less": (
        one_less(4, "2026-03-16", "- 1"),
        ["<M> entry 4: by FORCE it took 6 of 7 and should have taken 7"],
    ),
    "a PARTIAL that took less than there was": (
        one_less(7, "2026-03-16", "- 1"),
        ["<M> entry 7: by PARTIAL it took 4 of 5 and should have taken 5"],
    ),
    "a PARTIAL that took more than there was": (
        one_less(3, "2026-03-15", "+ 1"),
        ["<M> entry 3: by PARTIAL it took 141 of 200 and should have taken 140"],
    ),
    "a PARTIAL that took more than was asked": (
        [entry(3, "requested_amount = 139")],
        ["<M> entry 3: by PARTIAL it took 140 of 139 and should have taken 139"],
    ),
    "a PARTIAL made a FORCE": (
        [entry(3, "policy = 'force'")],
        ["<M> entry 3: by FORCE it took 140 of 200 and should have taken 200"],
    ),
    "a PARTIAL made a REJECT": (
        [entry(3, "policy = 'reject'")],
        ["<M> entry 3: by REJECT it took 140 of 200 and should have taken 0"],
    ),
    "a FORCE made a REJECT": (
        [entry(4, "policy = 'reject'")],
        ["<M> entry 4: by REJECT it took 7 of 7 and should have taken 0"],
    ),
    "a PARTIAL that took all, made a FORCE": (
        [entry(7, "policy = 'force'")],
        ["<M> entry 7: it was recorded by <K_limited>, a key without usage:correct"],
    ),
    # Days and times.
    "the time that was sent, to another day": (
        [entry(3, "sent_at = '2026-03-16T05:00:00+00:00'")],
        ["<M> entry 3: its day is 2026-03-15 and should be 2026-03-16"],
    ),
    "the time that was sent, away": (
        [entry(3, "sent_at = NULL")],
        ["<M> entry 3: its day is 2026-03-15 and should be 2026-03-16"],
    ),
    "all days": (
        [
            "UPDATE ledger_entries SET day = '2026-03-18' WHERE meter_id = '<M>' AND day = '2026-03-16'",
            "UPDATE ledger_entries SET day = '2026-03-17' WHERE meter_id = '<M>' AND day = '2026-03-15'",
            day("2026-03-16", "day = '2026-03-18'"),
            day("2026-03-15", "day = '2026-03-17'"),
        ],
        [
            "<M> entry 2: its day is 2026-03-18 and should be 2026-03-16",
            "<M> entry 3: its day is 2026-03-17 and should be 2026-03-15",
            "<M> entry 4: its day is 2026-03-18 and should be 2026-03-16",
            "<M> entry 7: its day is 2026-03-18 and should be 2026-03-16",
        ],
    ),
    "the time that was sent, ahead": (
        [entry(2, "sent_at = '2026-03-16T12:06:00+00:00'")],
        [
            "<M> entry 2: it was recorded at 2026-03-16 12:00:00+00:00, and was sent for 2026-03-16 12:06:00+00:00",
        ],
    ),
    "the time that was sent, to before 1970": (
        [
            entry(3, "sent_at = '1969-12-31T23:59:59+00:00', day = '1969-12-31'"),
            day("2026-03-15", "day = '1969-12-31'"),
        ],
        [
            "<M> entry 3: it was recorded at 2026-03-16 12:00:00+00:00, and was sent for 1969-12-31 23:59:59+00:00",
        ],
    ),
    "the time that was sent, on the same day": ([entry(3, "sent_at = '2026-03-16T03:00:00+00:00'")], []),
    "the time that was sent, to long ago": (
        [
            entry(7, "sent_at = '2026-01-16T12:00:00+00:00', day = '2026-01-16'"),
            day("2026-03-16", "total_usage = 13"),
            new_day("2026-01-16", "default", 5),
        ],
        ["<M> entry 7: it was recorded by <K_limited>, a key without usage:correct"],
    ),
    "the time of a recording, backwards": (
        [entry(5, "recorded_at = '2026-03-16T11:54:00+00:00'")],
        [
            (
                "<M> entry 5: it was recorded at 2026-03-16 11:54:00+00:00, and the one before it at"
                " 2026-03-16 12:00:00+00:00"
            ),
            "<M> entry 5: it was recorded by <K_all>, a key that was made later, at 2026-03-16 12:00:00+00:00",
        ],
    ),
    "the time of a recording, forwards": (
        [entry(5, "recorded_at = '2026-03-16T12:06:00+00:00'")],
        [
            (
                "<M> entry 6: it was recorded at 2026-03-16 12:00:00+00:00, and the one before it at"
                " 2026-03-16 12:06:00+00:00"
            ),
        ],
    ),
    "the times of the meter": (
        [meter("created_at = '2026-03-15T12:00:00+00:00', updated_at = '2026-03-17T12:00:00+00:00'")],
        [
            "<M> its created_at is 2026-03-15 12:00:00+00:00 and should be 2026-03-16 12:00:00+00:00",
            "<M> its updated_at is 2026-03-17 12:00:00+00:00 and should be 2026-03-16 12:00:00+00:00",
        ],
    ),
    # Who recorded.
    "the recorder, to nobody": (
        [entry(2, "recorded_by = 'key_nobody'")],
        ["<M> entry 2: it was recorded by 'key_nobody', and there is no such key"],
    ),
    "the recorder, to a session": (
        [entry(2, "recorded_by = '<S>'")],
        ["<M> entry 2: it was recorded by '<S>', and there is no such key"],
    ),
    "the recorder, to another tenant's key": (
        [entry(2, "recorded_by = '<K_other>'")],
        ["<M> entry 2: it was recorded by <K_other>, a key of another tenant"],
    ),
    "the recorder, to another environment's key": (
        [entry(2, "recorded_by = '<K_live>'")],
        ["<M> entry 2: it was recorded by <K_live>, a key of another tenant"],
    ),
    "the recorder, to another workspace's key": (
        [entry(2, "recorded_by = '<K_narrow>'")],
        ["<M> entry 2: it was recorded by <K_narrow>, a key for other workspaces"],
    ),
    "the recorder, to one who may not": (
        [entry(5, "recorded_by = '<K_limited>'")],
        ["<M> entry 5: it was recorded by <K_limited>, a key without billing:write"],
    ),
    "the recorder, to one who may only read": (
        [entries_from(1, "recorded_by = '<K_reading>'")],
        [
            f"<M> entry {seq}: it was recorded by <K_reading>, a key without {scope}"
            for seq, scope in (
                *((1, "billing:write"), (2, "usage:write"), (3, "usage:write"), (4, "usage:correct")),
                *((4, "usage:write"), (5, "billing:write"), (6, "usage:correct"), (7, "usage:write")),
                (8, "billing:write"),
            )
        ],
    ),
    "the recorder, to an operator's command that does not do so": (
        [entry(seq, f"recorded_by = '{name}'") for seq, name in ((2, "tollgate-import"), (5, "tollgate-import"))]
        + [entry(6, "recorded_by = 'tollgate-demo'"), entry(8, "recorded_by = 'tollgate-import'")],
        [
            "<M> entry 5: it was recorded by tollgate-import, which records no REFILL",
            "<M> entry 6: it was recorded by tollgate-demo, which records no VOID",
            "<M> entry 8: it was recorded by tollgate-import, which records no SETTINGS",
        ],
    ),
    "the recorder of a void, to one who may not": (
        [entry(6, "recorded_by = '<K_limited>'")],
        ["<M> entry 6: it was recorded by <K_limited>, a key without usage:correct"],
    ),
    "the recorder, to the gateway itself": (
        [entry(2, "recorded_by = 'tollgate'")],
        ["<M> entry 2: it was recorded by tollgate, which records no USAGE"],
    ),
    "the recorder, to a key that there was not yet": (
        [change("api_keys", "created_at = '2026-03-16T12:06:00+00:00'", "id = '<K_limited>'")],
        [
            ("<M> entry 7: it was recorded by <K_limited>, a key that was made later, at 2026-03-16 12:06:00+00:00"),
        ],
    ),
    # What each kind has.
    "a refill of nothing": (
        [
            entry(5, "amount = 0"),
            entries_from(5, "total_credits_after = total_credits_after - 20, limit_credits = limit_credits - 20"),
            meter("total_credits = 100, limit_credits = 160, available_bits = 2"),
        ],
        ["<M> entry 5: its amount is 0", "<M> entry 7: by PARTIAL it took 5 of 5 and should have taken 0"],
    ),
    "totals below nothing": (
        [entry(8, "total_credits_after = -1, used_credits_after = -2")],
        [
            "<M> entry 8: the total credits after it are -1",
            "<M> entry 8: the used credits after it are -2",
            "<M> entry 8: the total credits after it are -1 and should be 120",
            "<M> entry 8: the used credits after it are -2 and should be 158",
            "<M> its total credits is 120 and should be -1",
            "<M> its used credits is 158 and should be -2",
            "<M> its limit is 180 and should be 59",
        ],
    ),
    "fields that a debit has, lost": (
        [entry(2, "key = NULL, requested_amount = NULL, policy = NULL")],
        [
            "<M> entry 2: it has no key, and each USAGE has one",
            "<M> entry 2: it has no requested_amount, and each USAGE has one",
            "<M> entry 2: it has no policy, and each USAGE has one",
        ],
    ),
    "the key of a refill, lost": (
        [entry(5, "key = NULL")],
        ["<M> entry 5: it has no key, and each REFILL has one"],
    ),
    "the key of a change of settings, lost": (
        [entry(8, "key = NULL")],
        ["<M> entry 8: it has no key, and each SETTINGS has one"],
    ),
    "fields that no debit has": (
        [entry(2, "reason = 'x', voids_seq = 1")],
        [
            "<M> entry 2: it has a voids_seq, which no USAGE has",
            "<M> entry 2: it has a reason, which no USAGE has",
            "<M> entry 1: more is voided than it took, or it is missing",
        ],
    ),
    "fields that no refill has": (
        [
            entry(
                5,
                "usage_name = 'x', day = '2026-03-16', requested_amount = 20, policy = 'force',"
                " sent_at = recorded_at, reason = 'x', metadata = '[1]'",
            )
        ],
        [
            "<M> entry 5: it has a usage_name, which no REFILL has",
            "<M> entry 5: it has a day, which no REFILL has",
            "<M> entry 5: it has a requested_amount, which no REFILL has",
            "<M> entry 5: it has a policy, which no REFILL has",
            "<M> entry 5: it has a sent_at, which no REFILL has",
            "<M> entry 5: it has a reason, which no REFILL has",
            "<M> entry 5: it has a metadata, which no REFILL has",
            "<M> entry 5: its metadata is no object",
        ],
    ),
    "a field that no change of settings has": (
        [entry(8, "reason = 'x'")],
        ["<M> entry 8: it has a reason, which no SETTINGS has"],
    ),
    "fields that a void has, lost": (
        [entry(6, "key = NULL, reason = NULL")],
        ["<M> entry 6: it has no key, and each VOID has one", "<M> entry 6: it has no reason, and each VOID has one"],
    ),
    "what a void gave back": (
        [entry(6, "requested_amount = 9")],
        ["<M> entry 6: it gave back 4 of 9"],
    ),
    "a void of what comes after it": (
        [entry(6, "voids_seq = 7")],
        ["<M> entry 7: more is voided than it took, or it is missing"],
    ),
    "a void of a void": (
        [
            entry(
                7,
                "kind = 'void', voids_seq = 6, reason = 'x', policy = NULL, metadata = '{}', recorded_by = '<K_all>',"
                " amount = 4, requested_amount = 4, used_credits_after = 149",
            ),
            entry(8, "used_credits_after = 149"),
            meter("used_credits = 149, available_bits = 5"),
            day("2026-03-16", "total_usage = 9"),
        ],
        [
            "<M> event 2: the used credits of its body is '158' and should be '149'",
            "<M> entry 6: more is voided than it took, or it is missing",
        ],
    ),
    "a void of another day than its event": (
        [
            entry(6, "day = '2026-03-15'"),
            day("2026-03-16", "total_usage = total_usage + 4"),
            day("2026-03-15", "total_usage = total_usage - 4"),
        ],
        ["<M> entry 2: more is voided than it took, or it is missing"],
    ),
    "a void under another name than its event": (
        [
            entry(6, "usage_name = 'x'"),
            day("2026-03-16", "total_usage = total_usage + 4"),
            new_day("2026-03-16", "x", -4),
        ],
        ["<M> entry 2: more is voided than it took, or it is missing"],
    ),
    "the kind of an entry": (
        [entry(5, "kind = 'usage'")],
        [
            "<M> entry 5: it has no usage_name, and each USAGE has one",
            "<M> entry 5: it has no day, and each USAGE has one",
            "<M> entry 5: it has no requested_amount, and each USAGE has one",
            "<M> entry 5: it has no policy, and each USAGE has one",
            "<M> entry 5: the total credits after it are 120 and should be 100",
            "<M> entry 5: the used credits after it are 157 and should be 177",
            "<M> day None, None: the usage of 20 is missing",
        ],
    ),
    "a day without entries": (
        [new_day("2026-03-14", "x", 0)],
        ["<M> day 2026-03-14, 'x': no entry counts on it"],
    ),
    # Idempotency keys of creates.
    "a meter's key, lost": (
        ["DELETE FROM idempotency_keys WHERE key = 'open'"],
        [f"<M> it was made under the idempotency key 'open', {MADE}"],
    ),
    "a meter's key, to another meter": (
        [key("open", "result_id = '<M_neighbour>'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M_neighbour> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, to another tenant's meter": (
        [key("open", "result_id = '<M_other>'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M_other> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, to a customer": (
        [key("open", "result_id = '<C_customer>'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<C_customer> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, to nothing": (
        [key("open", "result_id = 'nothing'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"nothing the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, renamed": (
        [key("open", "key = 'close'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M> the idempotency key 'close' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, of another operation": (
        [key("open", "operation = 'createBudget'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M> the idempotency key 'open' of createBudget by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "a meter's key, of another tenant": (
        [key("open", "org_id = '<other_org>'")],
        [
            f"<M> it was made under the idempotency key 'open', {MADE}",
            f"<M> the idempotency key 'open' of createBillingMeter by '<other_org>' in sandbox {NOWHERE}",
        ],
    ),
    "the request of a meter's key": (
        [key("open", "request_digest = 'x'")],
        ["<M> the idempotency key 'open' has the digest of another request"],
    ),
    "the time of a meter's key": (
        [key("open", "created_at = '2026-03-16T12:00:01+00:00'")],
        [
            "<M> the idempotency key 'open' is of 2026-03-16 12:00:01+00:00 and should be of 2026-03-16 12:00:00+00:00",
        ],
    ),
    "a meter that forgets its key": (
        [entry(1, "key = NULL")],
        [f"<M> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}"],
    ),
    "a meter that forgets its key, which another entry has": (
        [entry(1, "key = NULL"), entry(5, "key = 'open'")],
        [f"<M> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}"],
    ),
    "a customer's key, lost": (
        ["DELETE FROM idempotency_keys WHERE key = 'second-key'"],
        [f"<C_second> it was made under the idempotency key 'second-key', {MADE}"],
    ),
    "a customer's key, renamed": (
        [key("second-key", "key = 'third-key'")],
        [
            f"<C_second> the idempotency key 'third-key' of createCustomer by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
        ],
    ),
    "a customer's key, of another operation": (
        [key("second-key", "operation = 'createBillingMeter'")],
        [
            f"<C_second> the idempotency key 'second-key' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
        ],
    ),
    "the time of a customer's key": (
        [key("second-key", "created_at = '2026-03-16T12:00:01+00:00'")],
        [f"<C_second> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}"],
    ),
    "a customer's key, to another customer": (
        [key("second-key", "result_id = '<C_customer>'")],
        [
            f"<C_customer> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
        ],
    ),
    "a customer's key, to a meter": (
        [key("second-key", "result_id = '<M>'")],
        [
            f"<M> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
        ],
    ),
    "a customer's key, to another tenant's": (
        [key("second-key", "result_id = '<C_other>'")],
        [
            f"<C_other> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
        ],
    ),
    "a customer that forgets its key": (
        ["UPDATE customers SET idempotency_key = NULL WHERE id = '<C_second>'"],
        [f"<C_second> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}"],
    ),
    "a customer of another tenant": (
        ["UPDATE customers SET org_id = '<other_org>' WHERE id = '<C_second>'"],
        [
            "<M> its customer <C_second> is missing, or another tenant's",
            f"<C_second> the idempotency key 'second-key' of createCustomer by '<org>' in sandbox {NOWHERE}",
            f"<C_second> it was made under the idempotency key 'second-key', {MADE}",
            "<C_second> it was made by '<K_all>', and its tenant has no such key",
        ],
    ),
    "who made a customer, to another tenant's key": (
        [change("customers", "created_by = '<K_other>'", "id = '<C_second>'")],
        ["<C_second> it was made by '<K_other>', and its tenant has no such key"],
    ),
    "who made a customer, to another environment's key": (
        [change("customers", "created_by = '<K_live>'", "id = '<C_second>'")],
        ["<C_second> it was made by '<K_live>', and its tenant has no such key"],
    ),
    "who made a customer, to nobody": (
        [change("customers", "created_by = 'key_nobody'", "id = '<C_second>'")],
        ["<C_second> it was made by 'key_nobody', and its tenant has no such key"],
    ),
    "what a customer is found by": (
        [
            change("customers", "email_folded = 'Second@example.com'", "id = '<C_second>'"),
            change("customers", "name_folded = ''", "id = '<C_live>'"),
        ],
        [
            "<C_second> its email_folded does not follow from its email",
            "<C_live> its name_folded does not follow from its name",
        ],
    ),
    # Sessions and keys.
    "a session's parent, lost": (
        [session("parent_id = 'key_gone'")],
        ["<S> it is a session, and its parent key_gone is missing"],
    ),
    "a session's parent, forgotten": (
        [session("parent_id = NULL")],
        ["<S> it is a session, and its parent None is missing"],
    ),
    "a session's parent, another session": (
        [session("parent_id = '<S>'")],
        ["<S> it is a session, and so is its parent <S>"],
    ),
    "a session's parent, of another tenant": (
        [session("parent_id = '<K_other>'")],
        ["<S> it is a session, and its parent <K_other> is another tenant's"],
    ),
    "a session's parent, of another environment": (
        [session("parent_id = '<K_live>'")],
        ["<S> it is a session, and its parent <K_live> is another tenant's"],
    ),
    "a session's parent, of another workspace": (
        [session("parent_id = '<K_narrow>'")],
        ["<S> it is a session, and its workspaces are not those of its parent <K_narrow>"],
    ),
    "a session's customer, forgotten": (
        [session("customer_id = NULL")],
        ["<S> it is a session, and its customer None is missing, or another tenant's"],
    ),
    "a session's customer, of another tenant": (
        [session("customer_id = '<C_other>'")],
        ["<S> it is a session, and its customer <C_other> is missing, or another tenant's"],
    ),
    "a session's customer, of another environment": (
        [session("customer_id = '<C_live>'")],
        ["<S> it is a session, and its customer <C_live> is missing, or another tenant's"],
    ),
    "a session's scopes": (
        [session("""scopes = '["billing:read","billing:write"]'""")],
        ["<S> it is a session, and its scopes are billing:read, billing:write"],
    ),
    "a session's end": (
        [session("expires_at = NULL")],
        ["<S> it is a session, and it does not end with its parent"],
    ),
    "a session's end, after its parent's": (
        [change("api_keys", "expires_at = '2026-03-16T12:00:01+00:00'", "id = '<K_all>'")],
        ["<S> it is a session, and it does not end with its parent"],
    ),
    "a session's end, too late": (
        [session("expires_at = '2026-03-17T12:00:01+00:00'")],
        [
            (
                "<S> it is a session, and it is from 2026-03-16 12:00:00+00:00 to 2026-03-17 12:00:01+00:00, which is"
                " longer than any"
            )
        ],
    ),
    "a key's scopes": (
        ["""UPDATE api_keys SET scopes = '["everything"]' WHERE id = '<K_narrow>'"""],
        ["<K_narrow> its scopes are everything"],
    ),
    # Ids.
    "the id of a key": (
        ["UPDATE api_keys SET id = 'k' WHERE id = '<K_narrow>'"],
        ["k its id is none of a key"],
    ),
    "the id of a customer": (
        [
            change("customers", "id = 'c'", "id = '<C_live>'"),
            key("live-key", "result_id = 'c'"),
        ],
        ["c its id is none of a customer"],
    ),
    "the id of a meter": (
        [
            change(table, f"{column} = 'm'", f"{column} = '<M>'")
            for table, column in (
                ("ledger_entries", "meter_id"),
                ("usage_days", "meter_id"),
                ("idempotency_keys", "result_id"),
                ("billing_meters", "id"),
            )
        ],
        ["m its id is none of a meter", "<M> events has rows of it, and there is no such meter"],
    ),
    # What leaves no trace elsewhere.
    "another metadata, key or reason": (
        [entry(7, "metadata = '{}', key = 'e'"), entry(6, "reason = 'y'")],
        [],
    ),
    "another recorder who may": ([entry(7, "recorded_by = '<K_all>'")], []),
    "what was asked for, by which the same is taken": (
        [entry(2, "policy = 'partial'"), entry(3, "requested_amount = 141")],
        [],
    ),
    "what a customer is called": (
        [change("customers", "name = 'Ada', name_folded = 'ada'", "id = '<C_customer>'")],
        [],
    ),
    "what a key may do": (
        [
            session("parent_id = NULL, customer_id = NULL"),
            change("api_keys", """scopes = '["usage:write"]', revoked_at = created_at""", "id = '<K_narrow>'"),
        ],
        [],
    ),
    "a debit that was another, in all rows": (
        [
            *one_less(7, "2026-03-16", "- 1"),
            entry(7, "requested_amount = 4"),
            change("events", """payload = replace(payload, '"158"', '"157"')""", "owner_id = '<M>' AND number = 2"),
        ],
        [],
    ),
    # What no release writes.
    "a kind that there is not": (
        [entry(5, "kind = 'bonus'")],
        [
            (
                "<M> entry 5: it cannot be read: 'bonus' is not among the defined enum values."
                " Enum name: ledgerentrykind. Possible values: opening, refill, usage, ..., hold_expiry"
            ),
            "<M> entry 6: it follows entry 4",
            "<M> entry 6: the total credits after it are 120 and should be 100",
        ],
    ),
    "metadata that is no JSON": (
        [entry(8, "metadata = '{'")],
        ["<M> entry 8: it cannot be read: unexpected end of data: line 1 column 2 (char 1)"],
    ),
    "an environment that there is not": (
        ["UPDATE customers SET environment = 'prod' WHERE id = '<C_live>'"],
        [
            f"<C_live> the idempotency key 'live-key' of createCustomer by '<org>' in live {NOWHERE}",
            f"<C_live> it was made under the idempotency key 'live-key', {MADE}",
            (
                "<C_live> it cannot be read: 'prod' is not among the defined enum values. Enum name: environment."
                " Possible values: live, sandbox"
            ),
        ],
    ),
    "the environment of a meter that there is not": (
        ["UPDATE billing_meters SET environment = 'prod', customer_id = NULL WHERE id = '<M>'"],
        [
            (
                "<M> it cannot be read: 'prod' is not among the defined enum values. Enum name: environment."
                " Possible values: live, sandbox"
            ),
            f"<M> the idempotency key 'open' of createBillingMeter by '<org>' in sandbox {NOWHERE}",
        ],
    ),
    "scopes that are no JSON": (
        ["UPDATE api_keys SET scopes = '{' WHERE id = '<S>'"],
        ["<S> it cannot be read: unexpected end of data: line 1 column 2 (char 1)"],
    ),
}
