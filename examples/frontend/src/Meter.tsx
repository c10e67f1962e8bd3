import { exact, percent } from './amounts.ts';
import { graphql, useFragment, type FragmentType } from './gql/index.ts';
import { RefillForm } from './RefillForm.tsx';
import { UsageChart } from './UsageChart.tsx';

const MeterFragment = graphql(`
  fragment Meter on BillingMeter {
    id
    workspaceId
    externalMeterId
    totalCredits
    usedCredits
    overageCredits
    availableCredits
    allowOverages
    spendCap
    ...UsageChart
  }
`);

type Props = { meter: FragmentType<typeof MeterFragment>; onChange: () => void };

export function Meter({ meter: masked, onChange }: Props) {
  const meter = useFragment(MeterFragment, masked);
  const used = percent(BigInt(meter.usedCredits), BigInt(meter.totalCredits));
  const title = `meter-${meter.id}`;
  return (
    <section className="card" aria-labelledby={title} data-meter={meter.externalMeterId}>
      <div className="heading">
        <h2 id={title}>{meter.workspaceId}</h2>
        <p className="quiet">{overages(meter)}</p>
      </div>
      <dl className="balances">
        <Balance name="Available" credits={meter.availableCredits} />
        <Balance name="Used" credits={meter.usedCredits} />
        <Balance name="Total" credits={meter.totalCredits} />
      </dl>
      <div className="meter" role="img" aria-label={`${Math.floor(used)}% of the total is used`}>
        <svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">
          <rect width={used} height="1" className={BigInt(meter.overageCredits) > 0n ? 'over' : 'part'} />
        </svg>
      </div>
      <RefillForm meterId={meter.id} onRefilled={onChange} />
      <UsageChart meter={meter} />
    </section>
  );
}

function Balance({ name, credits }: { name: string; credits: string | null }) {
  const text = credits === null ? 'No limit' : exact(credits);
  return (
    <div className={text.length > 13 ? 'long' : undefined}>
      <dt>{name}</dt>
      <dd>{text}</dd>
    </div>
  );
}

function overages(meter: { allowOverages: boolean; spendCap: string | null; overageCredits: string }): string {
  if (!meter.allowOverages) return 'No overage';
  const most = meter.spendCap === null ? ', no cap' : ` of ${exact(meter.spendCap)}`;
  return `Overage: ${exact(meter.overageCredits)}${most}`;
}
