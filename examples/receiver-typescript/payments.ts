import { DatabaseSync } from 'node:sqlite';

// A stand-in for a payment provider: it charges cards that do not exist, and keeps the charges in payments.db. Put your
// provider's library here. What counts is that it takes an idempotency key, as Stripe and Adyen do: a charge that is
// asked for again under its key is the first one, whether it succeeded or was declined.

/** Providers forget a key after some time; Stripe's are kept for at least 24 hours. */
export const KEY_HOURS = 24;

/** The customer's card was declined, and nothing was charged. */
export class CardDeclined extends Error {}

const database = new DatabaseSync('payments.db');
database.exec(
  `CREATE TABLE IF NOT EXISTS charges
   (idempotency_key TEXT PRIMARY KEY, payer TEXT, amount_cents INTEGER, outcome TEXT)`,
);

/** Charges the payer's card, once under a key. Throws `CardDeclined`. */
export async function charge(payer: string, amountCents: bigint, idempotencyKey: string): Promise<void> {
  // A meter of this name has a card without money, as the numbers of test cards have it with real providers.
  const first = payer.startsWith('declined') ? 'declined' : 'charged';
  database
    .prepare('INSERT INTO charges VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING')
    .run(idempotencyKey, payer, amountCents, first);
  const kept = database.prepare('SELECT outcome FROM charges WHERE idempotency_key = ?').get(idempotencyKey);
  if (kept?.outcome === 'declined') throw new CardDeclined('The card was declined.');
}
