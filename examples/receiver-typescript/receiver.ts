// Receives Tollgate's webhooks, and pays for the refills that meters request.
//
// The gateway's address is the variable GATEWAY_URL, its key GATEWAY_KEY, and the endpoint's secret WEBHOOK_SECRET.
import { createServer, type IncomingMessage } from 'node:http';
import { Webhook } from 'standardwebhooks';
import type { EventsOfTollgate } from './events.ts';
import { take, unfinished } from './inbox.ts';
import { untilDone } from './work.ts';

const port = Number(process.env.PORT ?? 8200);

const webhook = new Webhook(process.env.WEBHOOK_SECRET ?? '');

/** Many times what an event takes. */
const MAX_BODY_BYTES = 65_536;

/** Returns what is answered to a delivery: once it is 204, the event is this program's to carry out. */
async function received(request: IncomingMessage): Promise<[status: number, text: string]> {
  if (request.method !== 'POST' || request.url !== '/webhooks') return [404, 'Webhooks are sent to /webhooks.\n'];
  const body = await read(request);
  if (body === null) return [413, 'The body is too long.\n'];
  let event: EventsOfTollgate;
  try {
    // The headers that matter come once, or are joined by commas to what is no signature.
    event = webhook.verify(body, request.headers as Record<string, string>) as EventsOfTollgate;
  } catch {
    return [400, 'The signature is not right.\n'];
  }
  // New types of events come: what is not known is taken and ignored.
  if (event.type === 'refill.requested') {
    const taken = take(String(request.headers['webhook-id']), event);
    // In the background: a delivery is not kept waiting for a payment.
    if (taken) void untilDone(taken);
  }
  return [204, ''];
}

async function read(request: IncomingMessage): Promise<Buffer | null> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length;
    // Of what is too long the rest is read and dropped, so that its sender reads the answer.
    if (bytes <= MAX_BODY_BYTES) parts.push(part);
  }
  return bytes > MAX_BODY_BYTES ? null : Buffer.concat(parts);
}

// What an earlier process has left.
for (const event of unfinished()) void untilDone(event);

createServer((request, response) => {
  received(request)
    .then(([status, text]) => response.writeHead(status).end(text))
    .catch((error: unknown) => {
      console.error(error);
      response.writeHead(500).end();
    });
}).listen(port, '127.0.0.1', () => console.log(`Webhooks are received at http://127.0.0.1:${port}/webhooks`));
