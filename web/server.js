// Talking to the API: answers as JSON, and everything that can go wrong as a Fault.

// Fault is what went wrong. status is 0 where the server could not be reached; pause is how
// many seconds the server would have us wait before the same request.
export class Fault extends Error {
  constructor(message, status, pause) {
    super(message);
    this.status = status;
    this.pause = pause;
  }
  // passing is true where the same request may succeed later.
  get passing() { return [0, 429, 502, 503, 504, 507].includes(this.status); }
}

export const unreachable = () => new Fault("The server cannot be reached. Check your connection; the page goes on by itself when it is back.", 0);

// faultOf reads an answer that is an error.
export function faultOf(status, body, header) {
  const pause = Number(header("Retry-After"));
  return new Fault(body?.detail ?? `The server answered ${status}.`, status, Number.isFinite(pause) && pause > 0 ? pause : undefined);
}

// reached tells the page whether the server answers; app.js shows it.
export function reached(yes) {
  window.dispatchEvent(new CustomEvent("reached", { detail: yes }));
}

// ask sends a request; body, if any, as JSON; key, if any, as the API key in place of the session. It returns the answer's JSON, and its position.
export async function ask(path, { method = "GET", body, signal, key } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, signal, cache: "no-store", body: body && JSON.stringify(body),
      headers: { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    reached(false);
    throw unreachable();
  }
  reached(true);
  const data = await answer.json().catch(() => null);
  if (answer.status === 401) window.dispatchEvent(new CustomEvent("signed-out"));
  if (!answer.ok) throw faultOf(answer.status, data, (name) => answer.headers.get(name));
  return { data, position: answer.headers.get("Pixtools-Position") };
}

export const get = async (path, signal) => (await ask(path, { signal })).data;

let told;

// settings are the server's limits and operations.
export function settings() {
  told ??= get("/settings.json").catch((error) => { told = undefined; throw error; });
  return told;
}
