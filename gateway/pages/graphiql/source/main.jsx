import { createRoot } from 'react-dom/client'

import './workers.js'
import '@graphiql/react/style.css'
import '@graphiql/plugin-doc-explorer/style.css'
import '@graphiql/plugin-history/style.css'
import '@graphiql/plugin-explorer/style.css'
import 'graphiql/graphiql.css'
import './page.css'

import { Page } from './page.jsx'

// The demo, and nothing else, hands out a key. Without the file the page works as well: one types a key in.
const { demoKey } = await fetch('graphiql/config.json', { cache: 'no-store' })
  .then((response) => response.json())
  .catch(() => ({ demoKey: null }))

createRoot(document.getElementById('page')).render(<Page demoKey={demoKey} />)
