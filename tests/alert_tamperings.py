"""What is changed behind the gateway's back of alerts and their events, and what `tollgate verify` finds of it."""


def event(where: str) -> str:
    return f"DELETE FROM events WHERE owner_id = '<M>' AND {where}"  # noqa: S608  # Our own names.


def taken_on(values: str, name: str, version: int = 1) -> str:
    return f"UPDATE meter_alerts SET {values} WHERE alert_id = '<{name}>' AND version = {version}"  # noqa: S608  # Our own names.


#: What is changed, and what is found: what follows from it may be reported, too.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "an event that is lost": (
        [event("seq = 4 AND alert_id = '<low>'")],
        ["entry 4: the alert.triggered of alert <low>, version 1 is missing"],
    ),
    "an event that is another alert's": (
        ["UPDATE events SET payload = replace(payload, '<low>', '<day>') WHERE seq = 4 AND alert_id = '<low>'"],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.triggered of alert <day>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of the other side": (
        [
            "UPDATE events SET type = 'alert.recovered' WHERE seq = 4 AND alert_id = '<low>'",
            (
                "UPDATE events SET payload = replace(payload, 'triggered', 'recovered') WHERE seq = 4"
                " AND alert_id = '<low>'"
            ),
        ],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.recovered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of another day": (
        ['UPDATE events SET payload = replace(payload, \'"day":"2026-03-16\', \'"day":"2026-03-15\') WHERE seq = 4'],
        [
            "entry 4: the alert.triggered of alert <day>, version 1 is missing",
            "entry 4: the alert.triggered of alert <day>, version 1 does not follow from the ledger",
        ],
    ),
    "an event of another threshold": (
        ['UPDATE events SET payload = replace(payload, \'"threshold":"10"\', \'"threshold":"11"\') WHERE seq = 5'],
        [
            "entry 5: the alert.recovered of alert <low>, version 1 is missing",
            "entry 5: the alert.recovered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "a grant whose coming end is lost": (
        [event("alert_id = '<near>'")],
        ["entry 7: the alert.triggered of alert <near>, version 1 is missing"],
    ),
    "a grant that came near earlier": (
        ["UPDATE events SET seq = 6 WHERE alert_id = '<near>'"],
        [
            "entry 7: the alert.triggered of alert <near>, version 1 is missing",
            "entry 6: the alert.triggered of alert <near>, version 1 does not follow from the ledger",
        ],
    ),
    "what triggered at once": (
        [event("seq = 8 AND alert_id = '<low>'")],
        ["entry 8: the alert.triggered of alert <low>, version 2 is missing"],
    ),
    "what is taken on earlier": (
        [taken_on("since_seq = 1", "low", 2)],
        ["entry 4: the alert.triggered of alert <low>, version 2 is missing"],
    ),
    "what is given up earlier": (
        [taken_on("until_seq = 4", "low")],
        ["entry 5: the alert.recovered of alert <low>, version 1 does not follow from the ledger"],
    ),
    "what holds since an entry that there is not": (
        [taken_on("since_seq = 99", "over")],
        ["alert <over>, version 1: it holds since entry 99 until None, and there is none"],
    ),
    "when it last triggered": (
        [taken_on("last_triggered_at = NULL", "day")],
        ["alert <day>, version 1: it last triggered at None and should have at 2026-03-16 12:00:00+00:00"],
    ),
    "a meter that does not say so": (
        ["UPDATE billing_meters SET has_alerts = FALSE WHERE id = '<M>'"],
        ["its has_alerts is False and should be True"],
    ),
    "a threshold that is another one": (
        [taken_on("threshold = 12", "low")],
        [
            "entry 4: the alert.triggered of alert <low>, version 1 is missing",
            "entry 4: the alert.triggered of alert <low>, version 1 does not follow from the ledger",
        ],
    ),
    "an alert whose meter is missing": (
        ["UPDATE meter_alerts SET meter_id = 'mtr_x' WHERE alert_id = '<over>'"],
        ["meter_alerts has rows of it, and there is no such meter"],
    ),
}
