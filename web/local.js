// The jobs that this browser submitted, kept over a reload. Storage may be full or forbidden:
// then they are known until the page is left.

let place = "pixtools.jobs";
// most is how many jobs are kept; the oldest leave.
const most = 200;

let jobs = read();

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(place) ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

function write() {
  try {
    localStorage.setItem(place, JSON.stringify(jobs));
  } catch {
    // It stays in memory.
  }
}

// of says whose they are: each tenant that this browser was signed in as has its own.
export function of(tenant) {
  place = tenant === "default" ? "pixtools.jobs" : `pixtools.jobs.${tenant}`;
  jobs = read();
}

// Another tab may have written since.
window.addEventListener("storage", (event) => { if (event.key === place) jobs = read(); });

// all is every job, the newest first: id, name, bytes, operations, at, and what was last
// heard of it: state (PENDING, ..., or an outcome), expired, gone.
export const all = () => jobs;
export const find = (id) => jobs.find((job) => job.id === id);

export function add(job) {
  jobs = [job, ...jobs.filter((other) => other.id !== job.id)].slice(0, most);
  write();
}

export function remove(id) {
  jobs = jobs.filter((job) => job.id !== id);
  write();
}

// hear notes what the server says of a job, if it is one of ours.
export function hear(id, news) {
  const known = find(id);
  if (!known || Object.entries(news).every(([name, value]) => known[name] === value)) return;
  Object.assign(known, news);
  write();
}

// newsOf is what is noted of a job as the server tells it.
export const newsOf = (job) => ({ state: job.outcome ?? job.status, expired: expired(job), gone: false });

// expired says whether a job has results that are not kept any more.
export const expired = (job) => job.operations.some((name) => job.operation_results[name].state === "COMPLETED" && !job.result_urls[name]);
