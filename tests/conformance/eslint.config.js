// The lint of the schema as clients see it: `make conformance`.
import { readFileSync } from 'node:fs';
import graphql from '@graphql-eslint/eslint-plugin';
import { buildSchema } from 'graphql';

const file = 'schema/schema.graphql';
const schema = buildSchema(readFileSync(file, 'utf-8'));
const refusals = schema.getPossibleTypes(schema.getType('UserError')).map(({ name }) => name);

export default [
  {
    files: [file],
    languageOptions: { parser: graphql.parser, parserOptions: { graphQLConfig: { schema: file } } },
    plugins: { '@graphql-eslint': graphql },
    rules: {
      ...graphql.configs['flat/schema-recommended'].rules,
      ...graphql.configs['flat/schema-relay'].rules,
      '@graphql-eslint/strict-id-in-types': [
        'error',
        {
          exceptions: {
            // A page and its parts are places in a list, and a success is an answer: none is fetched again.
            suffixes: ['Connection', 'Edge', 'Success'],
            types: [
              ...refusals, // Answers as well.
              'AutoRefill', // A part of a meter.
              'BurnDownStep', // A part of a meter's credits.
              'CreditDraw', // A part of a ledger entry.
              'MeterAlert', // How a meter stands to an alert.
              'PageInfo', // A part of a page.
              'UsageDay', // Named by its meter, day and usage name, as in the REST API that it comes from.
              'WebhookAttempt', // A part of a webhook delivery.
              'Viewer', // The caller; there is one a request.
            ],
          },
        },
      ],
      // The caller's name of a hold is its `holdId`, as that of an event is its `eventId`: its `id` is ours. The rule knows
      // no exceptions by name: tests/test_schema.py holds their list.
      '@graphql-eslint/no-typename-prefix': 'off',
      '@graphql-eslint/relay-edge-types': [
        'error',
        {
          withEdgeSuffix: true,
          shouldImplementNode: true,
          // Some lists are none of edges, because each has a bound of its own: `nodes` on a connection, the short cut to
          // the page's rows; `usage`, bounded by its days; `nodes` and `recordUsageBatch`, as long as what was sent; and
          // a key's scopes and workspaces. The rule knows no exceptions by name: tests/test_schema.py holds their list.
          listTypeCanWrapOnlyEdgeType: false,
        },
      ],
    },
  },
];
