import { useState } from 'react';
import { about, axisEnd, exact, percent } from './amounts.ts';
import { graphql, useFragment, type FragmentType } from './gql/index.ts';

const UsageChartFragment = graphql(`
  fragment UsageChart on BillingMeter {
    usage(fillZeros: true) {
      day
      billingUsageName
      totalBillingUsage
    }
  }
`);

type Props = { meter: FragmentType<typeof UsageChartFragment> };
type Day = { day: string; total: bigint; parts: { name: string; credits: bigint }[] };

// A day has no time: it is read and written in UTC, so that no time zone moves it.
const dayAndMonth = new Intl.DateTimeFormat('en', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const written = (day: string): string => dayAndMonth.format(new Date(day));

/** The usage of the last 30 days: a column a day, with a part for each usage name. */
export function UsageChart({ meter }: Props) {
  const { usage } = useFragment(UsageChartFragment, meter);
  const [pointed, setPointed] = useState<Day | null>(null);
  const days = daysOf(usage);
  const names = [...new Set(usage.map((row) => row.billingUsageName))].sort();
  const first = days[0];
  const last = days.at(-1);
  if (!first || !last) return <p className="quiet">Nothing was used in the last 30 days.</p>;
  const total = days.reduce((sum, day) => sum + day.total, 0n);
  const end = axisEnd(days.reduce((most, day) => (day.total > most ? day.total : most), 0n));
  return (
    <figure>
      <figcaption>
        Used in 30 days: <strong>{exact(total)}</strong>
      </figcaption>
      <div className="chart">
        <div className="scale" aria-hidden="true">
          <span>{about(end)}</span>
          <span>{end % 2n === 0n ? about(end / 2n) : ''}</span>
          <span>0</span>
        </div>
        <svg
          viewBox={`0 0 ${days.length} 100`}
          preserveAspectRatio="none"
          role="list"
          aria-label="Usage by day"
          onMouseLeave={() => setPointed(null)}
        >
          {[0, 50, 100].map((y) => (
            <line key={y} x1="0" x2={days.length} y1={y} y2={y} />
          ))}
          {days.map((day, x) => (
            <g
              key={day.day}
              role="listitem"
              aria-label={described(day)}
              data-day={day.day}
              onMouseEnter={() => setPointed(day)}
            >
              <rect className="column" x={x} width="1" height="100" />
              {stacked(day, end).map((part) => (
                <rect
                  key={part.name}
                  className={`series-${names.indexOf(part.name) % 4}`}
                  x={x + 0.15}
                  width="0.7"
                  y={100 - part.top}
                  height={part.height}
                  data-name={part.name}
                  data-credits={part.credits.toString()}
                />
              ))}
            </g>
          ))}
        </svg>
        <div className="days" aria-hidden="true">
          <span>{written(first.day)}</span>
          <span>{written(last.day)}</span>
        </div>
      </div>
      <div className="below">
        <ul className="legend">
          {names.map((name, index) => (
            <li key={name} className={`series-${index % 4}`}>
              {name}
            </li>
          ))}
        </ul>
        <p className="quiet">{pointed ? described(pointed) : '\u00a0'}</p>
      </div>
    </figure>
  );
}

/** Puts the rows of a day together; the gateway answers them by day, then by name. */
function daysOf(rows: { day: string; billingUsageName: string; totalBillingUsage: string }[]): Day[] {
  const days = new Map<string, Day>();
  for (const row of rows) {
    const day = days.get(row.day) ?? { day: row.day, total: 0n, parts: [] };
    const credits = BigInt(row.totalBillingUsage);
    day.parts.push({ name: row.billingUsageName, credits });
    day.total += credits;
    days.set(row.day, day);
  }
  return [...days.values()];
}

/** The parts of a column that have usage, from the axis up, in percent of its end. */
function stacked(day: Day, end: bigint) {
  let below = 0n;
  return day.parts
    .filter((part) => part.credits > 0n)
    .map((part) => {
      const bottom = percent(below, end);
      below += part.credits;
      const top = percent(below, end);
      return { ...part, top, height: top - bottom };
    });
}

function described({ day, parts }: Day): string {
  return `${written(day)}: ${parts.map((part) => `${part.name} ${exact(part.credits)}`).join(', ')}`;
}
