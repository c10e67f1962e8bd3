type Props = { message: string; onRetry: () => void };

export function Problem({ message, onRetry }: Props) {
  return (
    <main className="problem" role="alert">
      <h1>Your billing cannot be shown</h1>
      <p>{message}</p>
      <button type="button" onClick={onRetry}>
        Try again
      </button>
    </main>
  );
}
