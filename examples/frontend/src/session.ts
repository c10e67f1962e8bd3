import type { Refill, RefillResult, Session } from '../server/billing.ts';

/** Asks the page's own backend. Throws with its message. */
async function post<Answer>(path: string, body: object): Promise<Answer> {
  const response = await fetch(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const answer = (await response.json()) as Answer & { error?: string };
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export const openSession = () => post<Session>('/api/session', {});

export const refill = (wanted: Refill) => post<RefillResult>('/api/refill', wanted);
