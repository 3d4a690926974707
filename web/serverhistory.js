// Every job that the server has, in pages, the newest first.

import { h, fill, notice, loading } from "./dom.js";
import { when } from "./format.js";
import { get, settings } from "./server.js";
import { jobList, speaker } from "./joblist.js";
import * as local from "./local.js";

const page = 20;
// between is the pause between two looks, and typing how long nobody may type before it is looked for, in milliseconds.
const between = 3000;
const typing = 300;

const states = { "": "Any", "status=PENDING,PROCESSING": "Open", "outcome=SUCCEEDED": "Succeeded", "outcome=PARTIAL": "Partial", "outcome=FAILED": "Failed", "outcome=CANCELLED": "Cancelled" };

export function serverHistory(root) {
  const { line, say } = speaker();
  let cursors = [""], position = "", timer, stopped = false, reading;
  const jobs = jobList("All jobs", { say, deleted(id, at) { local.remove(id); position = at; look(); }, changed(_, at) { position = at; look(); } });
  const search = h("input", { type: "search", id: "search", placeholder: "Beginning of an id", spellcheck: false, autocomplete: "off", oninput: () => { clearTimeout(timer); timer = setTimeout(anew, typing); } });
  const state = h("select", { id: "state", onchange: anew }, Object.entries(states).map(([value, name]) => h("option", { value }, name)));
  const operation = h("select", { id: "operation", onchange: anew }, h("option", { value: "" }, "Any"));
  const back = h("button", { className: "quiet", onclick: () => { cursors.pop(); look(); } }, "Newer");
  const on = h("button", { className: "quiet", onclick: () => { cursors.push(on.dataset.next); look(); } }, "Older");
  const body = h("div", {}, loading("the jobs"));
  fill(root, h("div", { className: "toolbar", role: "search" }, h("label", { htmlFor: "search" }, "Id"), search, h("label", { htmlFor: "state" }, "State"), state, h("label", { htmlFor: "operation" }, "Operation"), operation),
    line, body, h("div", { className: "actions" }, back, on));
  back.hidden = on.hidden = true;
  settings().then(({ operations }) => operation.append(...operations.map(({ name }) => h("option", { value: name }, name))), () => {});
  look();

  function anew() {
    cursors = [""];
    look();
  }

  async function look() {
    clearTimeout(timer);
    reading?.abort();
    reading = new AbortController();
    const asked = new URLSearchParams(state.value);
    asked.set("limit", page);
    for (const [name, value] of Object.entries({ q: search.value.trim().toLowerCase(), operation: operation.value, cursor: cursors.at(-1), after: position })) if (value) asked.set(name, value);
    try {
      const answer = await get(`/api/jobs?${asked}`, reading.signal);
      if (stopped) return;
      position = "";
      const none = search.value || state.value || operation.value ? notice("empty", "No such jobs", "Nothing is like this. Pick less, or search for another id.") : notice("empty", "No jobs yet", "The server has none.", h("a", { className: "button", href: "#/" }, "Submit a picture"));
      jobs.show(answer.jobs.map((job) => ({ id: job.job_id, title: local.find(job.job_id)?.name ?? job.job_id, hint: [job.operations.join(", "), when(job.created_at), job.revision > 1 && `revision ${job.revision}`].filter(Boolean).join(" · "), state: job.outcome ?? job.status })));
      if (answer.jobs.length === 0) fill(body, none); else if (!jobs.list.isConnected) fill(body, jobs.list);
      back.hidden = cursors.length === 1;
      on.hidden = answer.next === null;
      on.dataset.next = answer.next ?? "";
      if (line.classList.contains("error")) say("");
    } catch (fault) {
      if (fault.name === "AbortError" || stopped) return;
      // What is wrong with what was typed is said beside it; what is away, in place of the list.
      if (fault.passing && !jobs.list.isConnected) fill(body, notice("error", "The jobs cannot be read", fault.message, h("button", { onclick: look }, "Try again")));
      else say(fault.message, true);
    }
    if (!document.hidden) timer = setTimeout(look, between);
  }

  const seen = () => { if (!document.hidden) look(); };
  document.addEventListener("visibilitychange", seen);
  return () => { stopped = true; clearTimeout(timer); reading?.abort(); document.removeEventListener("visibilitychange", seen); };
}
