// Following a job: server-sent events, and questions where there are none. Each piece of news
// is the whole job, so whoever missed some has missed nothing.

import { get, reached, Fault } from "./server.js";

// The pause between two questions, and before a stream is tried again, in milliseconds.
const betweenQuestions = 1000;
const beforeNextStream = 5000;

// follow tells of a job until the function it returns is called:
//   job(job, position)   the job, at once and after each change
//   progress(state)      how far an operation is: operation, attempt, done, total
//   connection(word)     "live", "polling" or "waiting"
//   fault(fault)         asking again will not help
// With live: false it only asks. While the page is hidden it rests: a browser opens few
// connections to one server, for all of its tabs together. Of a job that has ended nothing
// more comes by itself; again() looks once more.
export function follow(id, { job, progress = () => {}, connection = () => {}, fault = () => {}, live = true, after = "" }) {
  let stopped = false, source, timer, asking;
  let last = after, newest;

  // older: another process may answer than the one before, with a read model that is behind.
  function take(data, position) {
    if (newest && older(data, newest)) return;
    newest = data;
    if (position) last = position;
    job(data, position);
    if (data.outcome) rest();
  }

  function rest() {
    source?.close();
    source = undefined;
    asking?.abort();
    clearTimeout(timer);
  }

  function begin() {
    rest();
    if (stopped || document.hidden) return;
    if (live) listen(); else question();
  }

  function listen() {
    // The browser connects again by itself, and sends the id of the last event.
    source = new EventSource(`/api/jobs/${id}/stream`);
    source.addEventListener("open", () => { clearTimeout(timer); reached(true); connection("live"); });
    source.addEventListener("job", (event) => take(JSON.parse(event.data), event.lastEventId));
    source.addEventListener("progress", (event) => progress(JSON.parse(event.data)));
    source.addEventListener("error", () => {
      if (stopped) return;
      connection("waiting");
      // Meanwhile we ask. CLOSED: it was refused, and the browser does not try again.
      const refused = source?.readyState === EventSource.CLOSED;
      clearTimeout(timer);
      asking?.abort(); // there is one chain of questions, not two
      timer = setTimeout(() => question(refused ? performance.now() + beforeNextStream : undefined), betweenQuestions);
    });
  }

  // question asks, and goes on asking: for ever without a stream, until the stream is open
  // where the browser tries, and until a time where we are to try it anew.
  async function question(until) {
    asking = new AbortController();
    try {
      take(await get(`/api/jobs/${id}${last ? `?after=${encodeURIComponent(last)}` : ""}`, asking.signal));
      connection("polling");
    } catch (error) {
      if (error.name === "AbortError" || stopped) return;
      if (!(error instanceof Fault) || !error.passing) { rest(); fault(error); return; }
      connection("waiting");
    }
    if (stopped || newest?.outcome || source?.readyState === EventSource.OPEN) return;
    const over = until !== undefined && performance.now() > until;
    timer = setTimeout(() => over ? begin() : question(until), over && newest ? 0 : betweenQuestions);
  }

  const seen = () => { if (document.hidden) rest(); else if (!newest?.outcome) begin(); };
  document.addEventListener("visibilitychange", seen);
  begin();
  const stop = () => { stopped = true; rest(); document.removeEventListener("visibilitychange", seen); };
  // First a question: a stream may begin with the job as it was before what was just written,
  // and the end of that is none.
  stop.again = (position) => { rest(); last = position || last; newest = undefined; question(0); };
  return stop;
}

// older compares how far a job is, not times: the clocks of those who tell of it differ.
function older(one, other) {
  const far = (job) => {
    const all = Object.values(job.operation_results);
    return [job.revision, job.outcome ? 1 : 0, all.filter((result) => !["PENDING", "RUNNING"].includes(result.state)).length, all.reduce((sum, result) => sum + result.attempt, 0)];
  };
  const a = far(one), b = far(other), i = a.findIndex((n, k) => n !== b[k]);
  return i >= 0 && a[i] < b[i];
}
