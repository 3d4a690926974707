// A job's events as the log has them, and the job as it was at each of them.

import { h, fill, notice, loading } from "./dom.js";
import { duration, toTheMillisecond } from "./format.js";
import { get } from "./server.js";
import { badge } from "./badge.js";
import { results } from "./results.js";

// settle is how long the job must be quiet before its events are read anew, in milliseconds.
const settle = 300;

const sentences = {
  JobRequested: () => "Submitted",
  OperationStarted: (e) => `${e.operation}: attempt ${e.attempt} began`,
  OperationCompleted: (e) => `${e.operation}: completed`,
  OperationFailed: (e) => `${e.operation}: failed — ${e.message ?? e.code}`,
  JobFinalized: (e) => `Ended: ${(e.outcome ?? "").replace("OUTCOME_", "").toLowerCase()}`,
  OperationRetryRequested: (e) => `Retry asked for: ${(e.operations ?? []).join(", ")}`,
  JobCancelRequested: () => "Cancellation asked for",
  ArtifactsExpired: () => "Pictures expired",
  ArtifactReplaced: (e) => `${e.operation}: another result was put in place`,
};

export function timeline(id) {
  const body = h("div", {});
  const section = h("details", { className: "timeline", ontoggle: () => { if (section.open) load(); } }, h("summary", {}, "Timeline"), body);
  const list = h("ol", { className: "events", "aria-label": "Events" });
  const slider = h("input", { type: "range", id: "moment", min: 0, step: 1, oninput: () => choose(Number(slider.value)) });
  const said = h("output", { htmlFor: "moment" });
  const past = results();
  const snapshot = h("div", { className: "snapshot", role: "group", "aria-label": "The job at that event" });
  let events = [], chosen = -1, timer, seen, reading, position = "";

  async function load() {
    if (events.length === 0) fill(body, loading("the events"));
    reading?.abort();
    reading = new AbortController();
    try {
      const answer = await get(`/api/jobs/${id}/events${position ? `?after=${encodeURIComponent(position)}` : ""}`, reading.signal);
      const atEnd = chosen === events.length - 1;
      events = answer.events;
      fill(list, events.map(row));
      slider.max = events.length - 1;
      if (!list.isConnected) fill(body, h("div", { className: "moment" }, h("label", { htmlFor: "moment" }, "The job at"), slider, said), h("div", { className: "timeline-body" }, list, snapshot));
      choose(atEnd ? events.length - 1 : Math.min(chosen, events.length - 1));
    } catch (fault) {
      if (fault.name !== "AbortError") fill(body, notice("error", "The events cannot be read", fault.message, h("button", { onclick: load }, "Try again")));
    }
  }

  function row(event, i) {
    const cause = events.find((other) => other.id === event.caused_by);
    const after = event.delay_seconds != null && cause ? ` · ${duration(Math.max(event.delay_seconds, 0))} after ${cause.type}` : "";
    return h("li", {}, h("button", { className: "event", onclick: () => choose(i), dataset: { type: event.type } },
      h("time", { dateTime: event.time }, toTheMillisecond(event.time)),
      h("span", { className: event.effect ? "" : "no-effect" }, (sentences[event.type] ?? (() => event.type))(event.event)),
      h("span", { className: "hint" }, `${event.type}${after}${event.effect ? "" : " · changed nothing"}`)));
  }

  let turn = 0;
  async function choose(i) {
    if (i < 0 || !events[i]) return;
    chosen = i;
    slider.value = i;
    const event = events[i];
    said.textContent = `${i + 1} of ${events.length}: ${event.type}, ${toTheMillisecond(event.time)}`;
    slider.setAttribute("aria-valuetext", said.textContent);
    for (const [n, item] of [...list.children].entries()) {
      if (n === i) item.firstChild.setAttribute("aria-current", "true"); else item.firstChild.removeAttribute("aria-current");
    }
    const mine = ++turn;
    try {
      const job = await get(`/api/jobs/${id}?at=${encodeURIComponent(event.position)}`);
      if (mine !== turn) return; // the slider went on
      past.show(job);
      fill(snapshot, h("p", { className: "snapshot-title" }, "The job then ", badge(job.outcome ?? job.status), job.revision > 1 && ` revision ${job.revision}`), past.list);
      snapshot.dataset.at = i;
    } catch (fault) {
      if (mine === turn) fill(snapshot, notice("error", "That state cannot be read", fault.message));
    }
  }

  return {
    section,
    // changed: the job is another; its events are read anew where they are shown. A stream is
    // ahead of what the events are found by, hence its position.
    changed(job, at) {
      position = at || position;
      const now = `${job.revision} ${job.updated_at}`;
      if (seen === now) return;
      seen = now;
      clearTimeout(timer);
      timer = setTimeout(() => { if (section.open) load(); }, settle);
    },
    stop() { clearTimeout(timer); reading?.abort(); },
  };
}
