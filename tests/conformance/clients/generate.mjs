// Generates a client of the schema with its manifest of trusted documents: node generate.mjs FOLDER.
import { generate } from '@graphql-codegen/cli';
import { addTypenameSelectionDocumentTransform, preset } from '@graphql-codegen/client-preset';

const [folder] = process.argv.slice(2);

await generate({
  schema: 'schema/schema.graphql',
  documents: 'tests/conformance/clients/documents.graphql',
  silent: true,
  generates: {
    [`${folder}/`]: {
      preset,
      presetConfig: { persistedDocuments: true },
      // Apollo's cache distinguishes objects by it.
      documentTransforms: [addTypenameSelectionDocumentTransform],
      // What Node can run by leaving the types out.
      config: { enumsAsTypes: true, useTypeImports: true },
    },
  },
});
