import { useRef, useState, type FormEvent } from 'react';
import type { RefillResult } from '../server/billing.ts';
import { exact } from './amounts.ts';
import { refill } from './session.ts';

type Props = { meterId: string; onRefilled: () => void };
type Notice = { kind: 'done' | 'refused' | 'unknown'; text: string };

export function RefillForm({ meterId, onRefilled }: Props) {
  const [amount, setAmount] = useState('');
  const [notice, setNotice] = useState<Notice | null>(null);
  // One key for one intention: it stays over clicks and retries until the answer is known, so the refill counts once.
  const unanswered = useRef<{ amount: string; key: string } | null>(null);
  const field = `refill-${meterId}`;

  function change(value: string): void {
    setAmount(value);
    setNotice(null);
  }

  async function submit(event: FormEvent): Promise<void> {
    event.preventDefault();
    // The same amount, typed anew, is still the same intention; another amount is another.
    if (unanswered.current?.amount !== amount) unanswered.current = { amount, key: crypto.randomUUID() };
    const wanted = unanswered.current;
    let result: RefillResult;
    try {
      result = await refill({ meterId, refill: amount, idempotencyKey: wanted.key });
    } catch {
      setNotice({ kind: 'unknown', text: 'There was no answer. Try again: it will not count twice.' });
      return;
    }
    setNotice(noticeOf(result));
    const isRefilled = result.__typename === 'RefillBillingMeterSuccess';
    if (isRefilled) onRefilled();
    if (unanswered.current === wanted) unanswered.current = null;
    // What was typed meanwhile stays.
    if (isRefilled) setAmount((typed) => (typed === amount ? '' : typed));
  }

  return (
    <form onSubmit={submit}>
      <label htmlFor={field}>Refill</label>
      <input
        id={field}
        value={amount}
        onChange={(event) => change(event.target.value.trim())}
        inputMode="numeric"
        pattern="[0-9]{1,19}"
        title="Whole credits, in digits"
        placeholder="Credits"
        autoComplete="off"
        required
      />
      <button type="submit">Add credits</button>
      <p role="status" className={notice?.kind}>
        {notice?.text}
      </p>
    </form>
  );
}

// The type of the union makes the compiler ask for a case each; a kind that the gateway learns later has a message too.
function noticeOf(result: RefillResult): Notice {
  switch (result.__typename) {
    case 'RefillBillingMeterSuccess': {
      if (!result.entry) return { kind: 'done', text: 'Nothing was added.' };
      const { amount, totalCreditsAfter } = result.entry;
      return { kind: 'done', text: `Added ${exact(amount)}. The total was ${exact(totalCreditsAfter)} then.` };
    }
    case 'InvalidInput':
      return { kind: 'refused', text: `Not added. ${result.message}` };
    case 'AmountOutOfRange':
      return { kind: 'refused', text: 'Not added: a meter cannot hold so many credits.' };
    case 'IdempotencyConflict':
      return { kind: 'refused', text: 'Not added: another refill was made under the same key.' };
    default:
      return { kind: 'refused', text: `Not added. ${result.message}` };
  }
}
