import type { CodegenConfig } from '@graphql-codegen/cli';

const preset = {
  preset: 'client',
  // Writes persisted-documents.json: each operation under its id, for a gateway that runs these alone.
  presetConfig: { persistedDocuments: true },
  config: {
    // An amount is a string of digits, to be read by BigInt: a number would lose what is beyond 2^53.
    scalars: { BigInt: 'string', Date: 'string', DateTime: 'string', JSON: 'Record<string, unknown>' },
    strictScalars: true,
    useTypeImports: true,
    // Node runs the server's TypeScript as it stands, and wants whole file names.
    importExtension: '.ts',
  },
} as const;

export default {
  schema: process.env.SCHEMA ?? '../../schema/schema.graphql',
  generates: {
    'src/gql/': { documents: ['src/*.tsx'], ...preset },
    // What the backend asks is generated apart, so that none of it comes into the page.
    'server/gql/': { documents: ['server/*.ts'], ...preset, config: { ...preset.config, documentMode: 'string' } },
  },
} satisfies CodegenConfig;
