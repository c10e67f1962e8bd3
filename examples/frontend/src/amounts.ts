// Amounts are whole credits of up to 19 digits. They come as strings and are never made a Number, which would lose
// what is beyond 2^53; Intl formats a BigInt exactly.

const grouped = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact' });

/** "1234567" is "1,234,567". */
export const exact = (credits: string | bigint): string => grouped.format(BigInt(credits));

/** 1234567n is about "1.2M": for an axis, where the exact amount stands elsewhere. */
export const about = (credits: bigint): string => short.format(credits);

/** How much a part is of a whole, from 0 to 100, to a hundredth; the division is exact and what is drawn is small. */
export function percent(part: bigint, whole: bigint): number {
  if (whole === 0n) return 0;
  const hundredths = (part * 10_000n) / whole;
  return Number(hundredths > 10_000n ? 10_000n : hundredths) / 100;
}

/** The next of 1, 2, 4, 6, 8, 10, 20, 40 … that is not less. */
export function axisEnd(most: bigint): bigint {
  let unit = 1n;
  while (unit * 10n < most) unit *= 10n;
  return [1n, 2n, 4n, 6n, 8n, 10n].map((step) => step * unit).find((end) => end >= most) ?? most;
}
