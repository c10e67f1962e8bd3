import { useQuery } from 'urql';
import { graphql } from './gql/index.ts';
import { Meter } from './Meter.tsx';
import { Problem } from './Problem.tsx';

const CustomerPage = graphql(`
  query CustomerPage {
    viewer {
      customer {
        name
        email
        billingMeters(first: 100) {
          nodes {
            id
            ...Meter
          }
        }
      }
    }
  }
`);

export function App() {
  const [{ data, error, fetching, stale }, ask] = useQuery({ query: CustomerPage });
  const refresh = () => ask({ requestPolicy: 'network-only' });
  const customer = data?.viewer.customer;
  if (error) return <Problem message={error.message} onRetry={refresh} />;
  if (!customer) return <main aria-busy="true" />;
  return (
    <main aria-busy={fetching || stale}>
      <header>
        <div>
          <p className="kicker">Billing</p>
          <h1>{customer.name ?? customer.email}</h1>
          <p className="quiet">{customer.email}</p>
        </div>
        <button type="button" className="plain" onClick={refresh}>
          Refresh
        </button>
      </header>
      {customer.billingMeters.nodes.map((meter) => (
        <Meter key={meter.id} meter={meter} onChange={refresh} />
      ))}
      {customer.billingMeters.nodes.length === 0 && <p className="quiet">There are no meters yet.</p>}
    </main>
  );
}
