// Runs the audits of GraphQL over HTTP: node graphql-over-http.mjs URL KEY.
// Prints what each came to, and ends with 1 unless every one is well: a warning or a notice is a failure as well.
import { auditServer } from 'graphql-http';

const [url, key] = process.argv.slice(2);

const results = await auditServer({
  url,
  // The audits know of no key, and each names its own headers.
  fetchFn: (input, init) => fetch(input, { ...init, headers: { ...init?.headers, authorization: `Bearer ${key}` } }),
});

for (const { id, name, status, reason } of results) {
  console.log([status.padEnd(6), id, name, reason && `: ${reason}`].filter(Boolean).join(' '));
}
const well = results.filter(({ status }) => status === 'ok').length;
console.log(`${well} of ${results.length} audits of GraphQL over HTTP are well.`);
process.exitCode = results.length > 0 && well === results.length ? 0 : 1;
