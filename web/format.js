// Numbers and times as people read them: times in the reader's own zone.

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  return n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

export const when = (time) => day.format(new Date(time));
export const toTheMillisecond = (time) => clock.format(new Date(time));

const ago = new Intl.RelativeTimeFormat(undefined, { numeric: "always" });

// fromNow says how far away a time is: in 29 days, in 3 hours.
export function fromNow(time) {
  const minutes = (Date.parse(time) - Date.now()) / 60_000;
  if (Math.abs(minutes) < 60) return ago.format(Math.round(minutes), "minute");
  return Math.abs(minutes) < 48 * 60 ? ago.format(Math.round(minutes / 60), "hour") : ago.format(Math.floor(minutes / 60 / 24), "day");
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const [large, small, many] = seconds < 3600 ? ["min", "s", seconds] : ["h", "min", seconds / 60];
  const rest = Math.floor(many % 60);
  return `${Math.floor(many / 60)} ${large}${rest > 0 ? ` ${rest} ${small}` : ""}`;
}

// saved says how much smaller a result is than its source, or how much larger.
export function saved(before, after) {
  const share = Math.round((1 - after / before) * 100);
  if (share === 0) return "about the same size";
  return share > 0 ? `${share} % smaller` : `${-share} % larger`;
}

export const sides = (picture) => `${picture.width} × ${picture.height}`;

// word writes PENDING as Pending.
export const word = (name) => name.charAt(0) + name.slice(1).toLowerCase();
