import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
import { Provider } from 'urql';
import { App } from './App.tsx';
import { createClient } from './client.ts';
import { Problem } from './Problem.tsx';
import './style.css';

const root = createRoot(document.getElementById('root')!);

async function start(): Promise<void> {
  try {
    const client = await createClient();
    root.render(
      <StrictMode>
        <Provider value={client}>
          <App />
        </Provider>
      </StrictMode>,
    );
  } catch (error) {
    root.render(<Problem message={String(error)} onRetry={start} />);
  }
}

void start();
