import { readFileSync } from 'node:fs';
import type { TypedDocumentString } from './gql/graphql.ts';

export const GATEWAY = new URL(process.env.GATEWAY_URL ?? 'http://127.0.0.1:8000');

// The secret key stays in this process. It needs the scopes billing:read and billing:write.
const key = readFileSync(process.env.GATEWAY_KEY_FILE ?? '../../tollgate-demo.key', 'utf8').trim();

// Set, and operations are named by their ids, for a gateway that was given persisted-documents.json.
const sendsIds = Boolean(process.env.DOCUMENT_IDS);

/** The gateway gave no result: it cannot be reached, or answered an error. */
export class NoResult extends Error {}

/** Runs an operation with the secret key and returns its data. Throws `NoResult`. */
export async function ask<Result, Variables>(
  document: TypedDocumentString<Result, Variables>,
  variables: Variables,
): Promise<Result> {
  const operation = sendsIds ? { documentId: document.__meta__?.hash } : { query: document.toString() };
  const response = await fetch(new URL('/graphql', GATEWAY), {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: JSON.stringify({ ...operation, variables }),
    signal: AbortSignal.timeout(15_000),
  }).catch((error: unknown) => {
    throw new NoResult('The gateway cannot be reached.', { cause: error });
  });
  const { data, errors } = (await response.json()) as { data?: Result; errors?: { message: string }[] };
  if (errors?.[0] || !data) throw new NoResult(errors?.[0]?.message ?? `The gateway answered ${response.status}.`);
  return data;
}
