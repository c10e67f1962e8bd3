import { explorerPlugin } from '@graphiql/plugin-explorer'
import { useGraphiQL, useGraphiQLActions } from '@graphiql/react'
import { GraphiQL, HISTORY_PLUGIN } from 'graphiql'
import { useCallback, useEffect, useMemo, useState } from 'react'

import { fetcherWith } from './fetcher.js'
import { environmentOf, forget, remember, rememberedKey } from './key.js'
import { STARTERS } from './starters.js'

const PLUGINS = [HISTORY_PLUGIN, explorerPlugin()]

export function Page({ demoKey }) {
  const [isRemembered, setIsRemembered] = useState(() => rememberedKey() !== null)
  const [key, setKey] = useState(() => rememberedKey() ?? demoKey ?? '')
  const [refusedKey, setRefusedKey] = useState(null)

  useEffect(() => {
    if (isRemembered && key) remember(key)
    else forget()
  }, [isRemembered, key])

  const onAnswer = useCallback((sent, isTaken) => setRefusedKey((refused) => (isTaken ? refused : sent)), [])
  // A new fetcher makes GraphiQL ask for the schema again.
  const fetcher = useMemo(() => fetcherWith(key, onAnswer), [key, onAnswer])

  return (
    <>
      <KeyBar
        applied={key}
        isDemo={Boolean(demoKey) && key === demoKey}
        isRefused={Boolean(key) && key === refusedKey}
        isRemembered={isRemembered}
        onApply={setKey}
        onRemember={setIsRemembered}
      />
      <GraphiQL
        defaultTabs={STARTERS}
        fetcher={fetcher}
        // The key is the only header that the gateway reads, and it has a field of its own.
        isHeadersEditorEnabled={false}
        plugins={PLUGINS}
        // Null is GraphiQL's word for: do not ask for it. Without a key the answer would be an error.
        schema={key ? undefined : null}
        shouldPersistHeaders={false}
      >
        <GraphiQL.Logo>Tollgate</GraphiQL.Logo>
        <AnswersOfOneKey of={key} />
        <SystemTheme />
      </GraphiQL>
    </>
  )
}

function KeyBar({ applied, isDemo, isRefused, isRemembered, onApply, onRemember }) {
  const [typed, setTyped] = useState(applied)
  const environment = environmentOf(applied)
  const apply = () => {
    setTyped(typed.trim())
    onApply(typed.trim())
  }
  return (
    <form
      // GraphiQL's colours are defined for its own class.
      className="graphiql-container key-bar"
      aria-label="API key"
      onSubmit={(event) => {
        event.preventDefault()
        apply()
      }}
    >
      <label htmlFor="key">API key</label>
      <input
        id="key"
        type="password"
        autoComplete="off"
        spellCheck="false"
        placeholder="sk_test_…"
        aria-describedby="key-message"
        aria-invalid={isRefused}
        value={typed}
        onBlur={apply}
        onChange={(event) => setTyped(event.target.value)}
      />
      {environment && <span className={`key-environment ${environment}`}>{environment}</span>}
      <label className="key-remember">
        <input type="checkbox" checked={isRemembered} onChange={(event) => onRemember(event.target.checked)} />
        Remember on this device
      </label>
      <p id="key-message" className={isRefused ? 'refused' : undefined} role="status">
        <Message isDemo={isDemo} isEmpty={!applied} isRefused={isRefused} />
      </p>
    </form>
  )
}

function Message({ isDemo, isEmpty, isRefused }) {
  if (isEmpty) {
    return (
      <>
        Enter a key to load the schema; <code>tollgate keys create</code> makes one.
      </>
    )
  }
  if (isRefused) return 'The gateway refuses this key: it is unknown, expired or revoked.'
  return isDemo ? 'This is the demo’s key.' : null
}

// What one key was told is not shown under another.
function AnswersOfOneKey({ of }) {
  const responseEditor = useGraphiQL((state) => state.responseEditor)
  // An editor that appears later is empty: the key alone counts.
  useEffect(() => responseEditor?.setValue(''), [of])
  return null
}

// The page's colours follow the system by themselves; the editors' theme is set once, so it is set again.
function SystemTheme() {
  const { setTheme } = useGraphiQLActions()
  const theme = useGraphiQL((state) => state.theme)
  useEffect(() => {
    const dark = window.matchMedia('(prefers-color-scheme: dark)')
    const again = () => setTheme(theme)
    dark.addEventListener('change', again)
    return () => dark.removeEventListener('change', again)
  }, [setTheme, theme])
  return null
}
