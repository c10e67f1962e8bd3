import { setTimeout as sleep } from 'node:timers/promises';
import * as gateway from './gateway.ts';
import * as inbox from './inbox.ts';
import * as payments from './payments.ts';

/** What a customer pays. */
const CREDITS_PER_CENT = 10n;

const LONGEST_PAUSE_MS = 60_000;

/** Carries an event out until that is done, whatever fails meanwhile. */
export async function untilDone(event: inbox.Taken): Promise<void> {
  let { wasCharging } = event;
  for (let pauseMs = 1_000; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
    try {
      return inbox.set(event.id, 'done', await refillRequested({ ...event, wasCharging }));
    } catch (error) {
      if (error instanceof gateway.Refused) {
        // Perhaps the card was charged: somebody has to look.
        console.error(`${event.id} needs a person: ${error.message}`);
        return inbox.set(event.id, 'stuck', error.message);
      }
      // Whatever it is, it may pass, and what was charged must be refilled.
      console.error(`${event.id} is tried again in ${pauseMs} ms:`, error);
    }
    await sleep(pauseMs);
    wasCharging = true;
  }
}

/** Charges and refills, both under the request's id, so that either happens once. Returns how it ended. */
async function refillRequested({ id, body, wasCharging }: inbox.Taken): Promise<string> {
  const { billingMeter, refill } = body.data;
  const now = Date.now();
  if (!wasCharging && now >= Date.parse(refill.expiresAt)) {
    return 'The request had expired, and nothing was charged.';
  }
  if (wasCharging && now >= Date.parse(refill.requestedAt) + payments.KEY_HOURS * 3_600_000) {
    throw new gateway.Refused(
      'Whether the card was charged is not known, and the provider may have forgotten the key.',
    );
  }
  // From here on the card may have been charged, also if this process dies.
  inbox.set(id, 'charging');
  const amountCents = (BigInt(refill.amount) + CREDITS_PER_CENT - 1n) / CREDITS_PER_CENT;
  try {
    await payments.charge(billingMeter.externalMeterId, amountCents, refill.requestId);
  } catch (error) {
    if (!(error instanceof payments.CardDeclined)) throw error;
    await gateway.fail(refill.requestId, error.message);
    return error.message;
  }
  await gateway.refill(billingMeter, refill.amount, refill.requestId);
  return 'Charged and refilled.';
}
