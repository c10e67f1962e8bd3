// One operation, sent to this gateway with the key; `onAnswer` is told the key and whether the gateway took it.
export function fetcherWith(key, onAnswer) {
  return async ({ query, variables, operationName }) => {
    if (!key) return problem('Enter an API key in the field above, then run the operation again.')
    const response = await fetch('graphql', {
      method: 'POST',
      headers: {
        accept: 'application/json',
        authorization: `Bearer ${key}`,
        'content-type': 'application/json',
      },
      // GraphiQL takes a moment to read a document: right after another tab is chosen, the name is still the old one's.
      body: JSON.stringify({ query, variables, operationName: query.includes(operationName) ? operationName : null }),
      cache: 'no-store',
      credentials: 'omit',
      redirect: 'error',
    })
    onAnswer(key, response.status !== 401)
    try {
      return await response.json()
    } catch {
      return problem(`The answer is not JSON; its status is ${response.status}.`)
    }
  }
}

function problem(message) {
  return { errors: [{ message }] }
}
