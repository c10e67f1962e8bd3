import type { BillingMeter } from './events.ts';

const url = new URL('/graphql', process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000');

// It needs the scope billing:write.
const key = process.env.GATEWAY_KEY ?? '';

/** What each mutation here answers: its success, or the rule that refused it. */
type Answer = { __typename: string; message?: string };

const REFILL = `mutation ($input: RefillBillingMeterInput!) {
  answer: refillBillingMeter(input: $input) {
    __typename
    ... on UserError { message }
  }
}`;

const FAIL = `mutation ($input: FailAutoRefillInput!) {
  answer: failAutoRefill(input: $input) {
    __typename
    ... on UserError { message }
  }
}`;

/** A rule of the gateway refuses the request; to send it again is no help. */
export class Refused extends Error {}

/** Refills the meter, once under the request's id. Throws `Refused`, or another error where nobody knows. */
export async function refill(meter: BillingMeter, credits: string, requestId: string): Promise<void> {
  const { workspaceId, externalMeterId } = meter;
  await send(REFILL, { workspaceId, externalMeterId, refill: credits, idempotencyKey: requestId });
}

/** Reports that a request is not paid for. Throws what `refill` does. */
export async function fail(requestId: string, reason: string): Promise<void> {
  await send(FAIL, { requestId, reason });
}

async function send(query: string, input: Record<string, string>): Promise<void> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables: { input } }),
    // More than the gateway waits by itself for its database, so that its own answer comes first.
    signal: AbortSignal.timeout(15_000),
  });
  if (!response.ok) throw new Error(`The gateway answered ${response.status}.`);
  const body = (await response.json()) as { data?: { answer: Answer | null }; errors?: { message: string }[] };
  const answer = body.data?.answer;
  if (!answer) throw new Error(body.errors?.[0]?.message ?? 'The gateway answered nothing.');
  if (answer.message !== undefined) throw new Refused(`${answer.__typename}: ${answer.message}`);
}
