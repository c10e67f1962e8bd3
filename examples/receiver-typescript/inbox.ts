import { DatabaseSync } from 'node:sqlite';
import type { RefillRequested } from './events.ts';

/** An event that is not done. */
export type Taken = { id: string; body: RefillRequested; wasCharging: boolean };

/** How far an event is; `stuck` is where a person is needed. */
export type State = 'received' | 'charging' | 'done' | 'stuck';

// The events that the receiver has taken, each once. Each statement is a transaction of its own, and what it has
// written is on the disk when it returns, which takes some milliseconds.
const database = new DatabaseSync('receiver.db');
database.exec(
  `CREATE TABLE IF NOT EXISTS events (
     id TEXT PRIMARY KEY, -- webhook-id, the same for every delivery of an event
     body TEXT NOT NULL,
     state TEXT NOT NULL DEFAULT 'received',
     note TEXT -- how it ended
   )`,
);

/** Keeps an event; null: it has been taken before. */
export function take(id: string, body: RefillRequested): Taken | null {
  const written = database
    .prepare('INSERT INTO events (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING')
    .run(id, JSON.stringify(body));
  return written.changes ? { id, body, wasCharging: false } : null;
}

/** Returns what an earlier process has left. */
export function unfinished(): Taken[] {
  const rows = database.prepare("SELECT id, body, state FROM events WHERE state IN ('received', 'charging')").all();
  return rows.map((row) => ({
    id: String(row.id),
    body: JSON.parse(String(row.body)) as RefillRequested,
    wasCharging: row.state === 'charging',
  }));
}

/** Writes how far an event is. */
export function set(id: string, state: State, note: string | null = null): void {
  database.prepare('UPDATE events SET state = ?, note = ? WHERE id = ?').run(state, note, id);
}
