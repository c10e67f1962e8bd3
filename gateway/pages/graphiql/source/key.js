// The API key: in memory, and on the device only if its user says so.

// GraphiQL's own names begin so too: "Clear storage" in its settings removes the key with the rest.
const REMEMBERED = 'graphiql:tollgate-key'

// Where a browser keeps nothing, its storage throws.
function storage() {
  try {
    return window.localStorage
  } catch {
    return null
  }
}

export function rememberedKey() {
  return storage()?.getItem(REMEMBERED) ?? null
}

export function remember(key) {
  storage()?.setItem(REMEMBERED, key)
}

export function forget() {
  storage()?.removeItem(REMEMBERED)
}

// The environment stands in the key itself: `sk_live_…`, `sk_test_…`, and the same of session tokens.
export function environmentOf(key) {
  return { live: 'live', test: 'sandbox' }[/^(?:sk|cst)_(live|test)_/.exec(key)?.[1]] ?? null
}
