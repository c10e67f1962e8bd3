// Monaco checks and completes in workers. They are files of the gateway's own, so that the page needs no `blob:`.
import EditorWorker from 'monaco-editor/esm/vs/editor/editor.worker.js?worker'
import JsonWorker from 'monaco-editor/esm/vs/language/json/json.worker.js?worker'
import GraphQLWorker from 'monaco-graphql/esm/graphql.worker.js?worker'

const WORKERS = { graphql: GraphQLWorker, json: JsonWorker }

globalThis.MonacoEnvironment = {
  getWorker: (_id, language) => new (WORKERS[language] ?? EditorWorker)(),
}
