import { readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { extname, join } from 'node:path';
import { openSession, refill, type Refill } from './billing.ts';
import { GATEWAY, NoResult } from './gateway.ts';

const port = Number(process.env.PORT ?? 8100);

// In a product this is who has signed in, read from the request's own cookie.
const customer = process.env.CUSTOMER ?? 'acme-robotics';

const TYPES: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css' };

// Without cookies, which belong to a name, the name is checked: under one of its own that leads to this machine, another
// site's page would be this page to the browser.
const hosts = [`127.0.0.1:${port}`, `localhost:${port}`];

// The built page is small and fixed: it is read once, and no path of a request ever reaches the disk.
const dist = join(import.meta.dirname, '..', 'dist');
const files = new Map(
  readdirSync(dist, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => {
      const path = join(entry.parentPath, entry.name);
      return [path.slice(dist.length), { body: readFileSync(path), type: TYPES[extname(path)] ?? 'text/plain' }];
    }),
);

const headers = {
  'content-security-policy': `default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' ${GATEWAY.origin}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
};

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname } = new URL(request.url ?? '/', 'http://localhost');
  const send = (status: number, body: unknown) =>
    response
      .writeHead(status, { ...headers, 'content-type': 'application/json', 'cache-control': 'no-store' })
      .end(JSON.stringify(body));
  if (!hosts.includes(request.headers.host ?? '')) return void send(403, { error: 'There is no such site.' });
  if (request.method === 'GET') {
    const file = files.get(pathname === '/' ? '/index.html' : pathname);
    if (!file) return void send(404, { error: 'There is no such page.' });
    return void response.writeHead(200, { ...headers, 'content-type': `${file.type}; charset=utf-8` }).end(file.body);
  }
  // Another site's page cannot send this type without asking first, and no answer says that it may.
  if (request.method !== 'POST' || request.headers['content-type'] !== 'application/json') {
    return void send(415, { error: 'Send JSON by POST.' });
  }
  const body = await read(request);
  if (pathname === '/api/session') return void send(200, await openSession(customer));
  if (pathname === '/api/refill' && isRefill(body)) {
    const result = await refill(customer, body);
    return void (result ? send(200, result) : send(404, { error: 'You have no such meter.' }));
  }
  send(400, { error: 'This is not understood.' });
}

async function read(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const part of request) {
    text += part;
    if (text.length > 10_000) return null;
  }
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isRefill(body: unknown): body is Refill {
  const { meterId, refill, idempotencyKey } = (body ?? {}) as Record<string, unknown>;
  return [meterId, refill, idempotencyKey].every((value) => typeof value === 'string');
}

createServer((request, response) => {
  answer(request, response).catch((error: unknown) => {
    console.error(error);
    const message = error instanceof NoResult ? error.message : 'This went wrong.';
    response.writeHead(502, { ...headers, 'content-type': 'application/json' }).end(JSON.stringify({ error: message }));
  });
}).listen(port, '127.0.0.1', () => console.log(`The page of ${customer}: http://127.0.0.1:${port}`));
