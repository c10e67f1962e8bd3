// Asks a gateway through the caches of Apollo Client and urql: node cache.mjs URL KEY PAGE, the page with their settings.
// Prints one JSON object: for each cache, as it comes and as the page sets it, what it still answers after each step
// without asking the gateway (null: it would ask again), and what it warned of.
import { readFileSync } from 'node:fs';
import { ApolloClient, HttpLink, InMemoryCache, gql } from '@apollo/client';
import { relayStylePagination } from '@apollo/client/utilities';
import { Client, fetchExchange } from '@urql/core';
import { cacheExchange } from '@urql/exchange-graphcache';
import { relayPagination } from '@urql/exchange-graphcache/extras';
import { buildSchema, introspectionFromSchema } from 'graphql';

const [url, key, page] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
const schema = introspectionFromSchema(buildSchema(readFileSync('schema/schema.graphql', 'utf-8')));

// What the page says to write, run as it stands there, its imports aside.
function cacheOf(name, scope) {
  const blocks = [...readFileSync(page, 'utf-8').matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code);
  const [code] = blocks.filter((block) => block.includes(`new ${name}(`) || block.includes(` ${name}(`));
  const body = code.replaceAll(/^import .*\n/gm, '');
  return new Function(...Object.keys(scope), `${body}\nreturn cache;`)(...Object.values(scope));
}

// Both with the same two functions: one asks the gateway, one the cache alone.
function apollo(cache) {
  const client = new ApolloClient({ cache, link: new HttpLink({ uri: url, headers }) });
  return {
    ask: (query, variables) => client.query({ query: gql(query), variables, fetchPolicy: 'network-only' }),
    change: (mutation, variables) => client.mutate({ mutation: gql(mutation), variables }),
    known: async (query, variables) => cache.readQuery({ query: gql(query), variables }),
  };
}

function urql(cache) {
  const client = new Client({
    url,
    preferGetMethod: false,
    fetchOptions: { headers },
    exchanges: [cache, fetchExchange],
  });
  return {
    ask: (query, variables) => client.query(query, variables, { requestPolicy: 'network-only' }).toPromise(),
    change: (mutation, variables) => client.mutation(mutation, variables).toPromise(),
    known: async (query, variables) =>
      (await client.query(query, variables, { requestPolicy: 'cache-only' }).toPromise()).data ?? null,
  };
}

const names = 'workspaceId: "w", externalMeterId: "m"';
const organization = '{ viewer { orgId } }';
const scopes = '{ viewer { scopes workspaceIds } }';
const usage = (fields, range = '') =>
  `{ billingMeter(${names}) { id usage${range} { billingId day billingUsageName ${fields} } } }`;
const ofRange = (fields, from) => usage(fields, `(from: "${from}", to: "2026-03-02")`);
const meter = `{ billingMeter(${names}) { id usedCredits } }`;
const record = `mutation ($eventId: String!) {
  recordUsage(input: { ${names}, eventId: $eventId, amount: "1" }) {
    ... on RecordUsageSuccess { billingMeter { id usedCredits } }
    ... on UserError { code }
  }
}`;
const customers = `query ($after: String, $filter: CustomerFilter) {
  customers(first: 2, after: $after, filter: $filter) {
    edges { cursor node { id email } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}`;

async function walk({ ask, change, known }, name) {
  const found = {};
  await ask(organization);
  await ask(scopes);
  found.viewer = await known(organization);

  await ask(usage('totalBillingUsage'));
  await ask(usage(''));
  found.usage = await known(usage('totalBillingUsage'));

  // Of two ranges that overlap, each is kept, and the days that they share are the same.
  await ask(ofRange('totalBillingUsage', '2026-03-01'));
  await ask(ofRange('totalBillingUsage', '2026-03-02'));
  found.range = await known(ofRange('totalBillingUsage', '2026-03-01'));

  await ask(meter);
  await change(record, { eventId: name });
  found.changed = await known(meter);

  // The pages of one list are joined, and lists of other filters are others.
  const { data } = await ask(customers, {});
  await ask(customers, { after: data.customers.pageInfo.endCursor });
  await ask(customers, { filter: { email: 'c@example.com' } });
  found.pages = await known(customers, {});
  found.filtered = await known(customers, { filter: { email: 'c@example.com' } });

  // What a usage day is known by may not be left out.
  const { error } = await ask(`{ billingMeter(${names}) { id usage { day } } }`, {}).catch((error) => ({ error }));
  found.refusesIncomplete = error !== undefined;
  return found;
}

const caches = {
  'apollo as it comes': () => apollo(new InMemoryCache()),
  'apollo as the page says': () => apollo(cacheOf('InMemoryCache', { InMemoryCache, relayStylePagination })),
  'graphcache as it comes': () => urql(cacheExchange({})),
  'graphcache as the page says': () => urql(cacheOf('cacheExchange', { cacheExchange, relayPagination, schema })),
};
const answers = {};
for (const [name, open] of Object.entries(caches)) {
  const warnings = new Set();
  console.warn = console.error = (...words) => void warnings.add(words.join(' ').split('\n')[0]);
  answers[name] = { ...(await walk(open(), name)), warnings: [...warnings] };
}
process.stdout.write(`${JSON.stringify(answers)}\n`);
