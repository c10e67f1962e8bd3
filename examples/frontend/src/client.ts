import { authExchange } from '@urql/exchange-auth';
import { Client, fetchExchange, makeOperation, mapExchange, type Exchange } from 'urql';
import { openSession } from './session.ts';

// A balance is asked for each time, so there is no cache among the exchanges.
export async function createClient(): Promise<Client> {
  let session = await openSession();
  const auth = authExchange(async ({ appendHeaders }) => ({
    addAuthToOperation: (operation) => appendHeaders(operation, { authorization: `Bearer ${session.token}` }),
    willAuthError: () => Date.parse(session.expiresAt) < Date.now(),
    didAuthError: ({ response }) => (response as Response | undefined)?.status === 401,
    refreshAuth: async () => {
      session = await openSession();
    },
  }));
  const exchanges = import.meta.env.DOCUMENT_IDS ? [sendIds, auth, fetchExchange] : [auth, fetchExchange];
  return new Client({ url: session.endpoint, exchanges, preferGetMethod: false });
}

// Sends an operation's id for its text, to a gateway that was given persisted-documents.json.
const sendIds: Exchange = mapExchange({
  onOperation(operation) {
    const { hash } = (operation.query as unknown as { __meta__: { hash: string } }).__meta__;
    const query = { kind: operation.query.kind, definitions: [], documentId: hash } as typeof operation.query;
    return makeOperation(operation.kind, { ...operation, query });
  },
});
