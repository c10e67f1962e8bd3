// Asks a gateway as the clients of Apollo and urql do that name documents by their ids:
// node ask.mjs URL KEY FOLDER, the folder with what generate.mjs wrote.
// Prints one JSON object: what each client was answered, and the requests that it took.
import { ApolloClient, ApolloLink, HttpLink, InMemoryCache, gql } from '@apollo/client';
import { PersistedQueryLink } from '@apollo/client/link/persisted-queries';
import { Client, fetchExchange } from '@urql/core';
import { persistedExchange } from '@urql/exchange-persisted';

const [url, key, folder] = process.argv.slice(2);
const { MakeCustomerDocument, ViewerDocument } = await import(`${folder}/graphql.ts`);
const headers = { authorization: `Bearer ${key}` };
const unknown = gql('query Unknown { viewer { orgId } }');
const hash = (document) => document.__meta__?.hash ?? 'sha256:unknown';

let requests;
async function recording(input, init) {
  const { search } = new URL(input);
  const response = await fetch(input, init);
  const hasQuery = search ? new URLSearchParams(search).has('query') : JSON.parse(init.body).query !== undefined;
  requests.push(`${init.method} ${hasQuery ? 'text' : 'id'} ${response.status}`);
  return response;
}

const apollo = new ApolloClient({
  cache: new InMemoryCache(),
  link: ApolloLink.from([
    new PersistedQueryLink({ generateHash: hash, useGETForHashedQueries: true }),
    new HttpLink({ uri: url, headers, fetch: recording }),
  ]),
});
const urql = new Client({
  url,
  fetch: recording,
  fetchOptions: { headers },
  exchanges: [
    persistedExchange({ generateHash: (_, document) => hash(document), enableForMutation: true }),
    fetchExchange,
  ],
});

async function outcomeOf(work) {
  requests = [];
  const { data, error } = await work().catch((error) => ({ error }));
  return { data: data ?? null, error: error?.message ?? null, requests };
}

const input = (name) => ({ input: { email: `${name}@example.com` } });
console.log(
  JSON.stringify({
    apollo: {
      query: await outcomeOf(() => apollo.query({ query: ViewerDocument, fetchPolicy: 'no-cache' })),
      mutation: await outcomeOf(() => apollo.mutate({ mutation: MakeCustomerDocument, variables: input('apollo') })),
      unknown: await outcomeOf(() => apollo.query({ query: unknown, fetchPolicy: 'no-cache' })),
    },
    urql: {
      query: await outcomeOf(() => urql.query(ViewerDocument, {}).toPromise()),
      mutation: await outcomeOf(() => urql.mutation(MakeCustomerDocument, input('urql')).toPromise()),
      unknown: await outcomeOf(() => urql.query(unknown, {}).toPromise()),
    },
  }),
);
