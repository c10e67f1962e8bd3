// What the page and its backend ask, in one manifest: `tollgate serve --documents` takes one.
import { readFileSync, writeFileSync } from 'node:fs';

const manifests = ['src', 'server'].map(
  (part): Record<string, string> => JSON.parse(readFileSync(`${part}/gql/persisted-documents.json`, 'utf8')),
);
writeFileSync('persisted-documents.json', JSON.stringify(Object.assign({}, ...manifests), null, 2));
