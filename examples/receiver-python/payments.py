"""A stand-in for a payment provider: it charges cards that do not exist, and keeps the charges in `payments.db`.

Put your provider's library here. What counts is that it takes an idempotency key, as Stripe and Adyen do: a charge that
is asked for again under its key is the first one, whether it succeeded or was declined.
"""

import sqlite3
from contextlib import closing

#: Providers forget a key after some time; Stripe's are kept for at least 24 hours.
KEY_HOURS = 24


class CardDeclined(Exception):
    """The customer's card was declined, and nothing was charged."""


async def charge(payer: str, amount_cents: int, idempotency_key: str) -> None:
    """Charge the payer's card, once under a key. Raises `CardDeclined`."""
    # A meter of this name has a card without money, as the numbers of test cards have it with real providers.
    outcome = "declined" if payer.startswith("declined") else "charged"
    with closing(sqlite3.connect("payments.db")) as database, database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS charges"
            " (idempotency_key TEXT PRIMARY KEY, payer TEXT, amount_cents INTEGER, outcome TEXT)"
        )
        database.execute(
            "INSERT INTO charges VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (idempotency_key, payer, amount_cents, outcome),
        )
        (outcome,) = database.execute(
            "SELECT outcome FROM charges WHERE idempotency_key = ?", (idempotency_key,)
        ).fetchone()
    if outcome == "declined":
        raise CardDeclined("The card was declined.")
