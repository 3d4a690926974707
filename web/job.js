// The view of one job, live.

import { h, fill, announce, notice, loading, confirmed } from "./dom.js";
import { bytes, fromNow, sides, when, duration, saved } from "./format.js";
import { ask } from "./server.js";
import { follow } from "./stream.js";
import { badge } from "./badge.js";
import { results } from "./results.js";
import { timeline } from "./timeline.js";
import { compare } from "./compare.js";
import { downloadAll } from "./zip.js";
import * as local from "./local.js";

const connections = { live: "Live", polling: "Asking every second", waiting: "Connecting…" };

export async function job(root, id) {
  const remembered = local.find(id);
  let newest, shownStates = {};

  const title = h("h1", {}, remembered?.name ?? "Job");
  const state = h("span", { id: "status" });
  const connection = h("span", { className: "connection", role: "status" });
  const facts = h("p", { className: "hint facts" });
  const actions = h("div", { className: "actions" });
  const message = h("p", { id: "message", className: "message", role: "status" });
  const cards = results({ compare: (name) => compare(newest, name), retry });
  const original = h("div", { className: "original" });
  const history = timeline(id);
  const body = h("div", { className: "job" }, original, cards.list, history.section);
  const waiting = loading("the job");
  fill(root, h("div", { className: "title" }, title, state, connection), facts, actions, message, waiting);

  const all = h("button", { onclick: saveAll }, "Download all (ZIP)");
  const again = h("button", { onclick: () => retry() }, "Retry what failed");
  const cancel = h("button", { className: "quiet", onclick: stopJob }, "Cancel");
  const erase = h("button", { className: "quiet", dataset: { action: "delete" }, onclick: remove }, "Delete");
  const share = h("button", { className: "quiet", onclick: copy }, "Copy link");
  fill(actions, all, again, cancel, erase, share);
  actions.hidden = true;

  const stop = follow(id, { job: show, after: remembered?.position ?? "",
    progress: (p) => { if (newest?.operation_results[p.operation]?.attempt === p.attempt) cards.progress(p.operation, p.done / p.total); },
    connection: (word) => { connection.textContent = connections[word]; connection.dataset.connection = word; },
    fault: (fault) => {
      local.hear(id, { gone: fault.status === 404 });
      connection.textContent = "";
      actions.hidden = true;
      const gone = fault.status === 404;
      (waiting.isConnected ? waiting : body).replaceWith(notice(gone ? "empty" : "error", gone ? "There is no such job" : "The job cannot be shown", fault.message,
        h("a", { className: "button", href: "#/history" }, "History")));
    } });

  function show(job, position) {
    if (waiting.isConnected) waiting.replaceWith(body);
    newest = job;
    local.hear(id, local.newsOf(job));
    const name = job.source.name || remembered?.name || "Job";
    title.textContent = name;
    fill(state, badge(job.outcome ?? job.status));
    if (job.outcome) connection.textContent = "";
    const took = job.finalized_at && job.revision === 1 ? ` · took ${duration((Date.parse(job.finalized_at) - Date.parse(job.created_at)) / 1000)}` : "";
    fill(facts, h("time", { dateTime: job.created_at }, when(job.created_at)), took, job.revision > 1 && ` · revision ${job.revision}`, " · ", h("code", { id: "job-id" }, id));
    const made = Object.values(job.result_urls).length;
    actions.hidden = false;
    all.hidden = made === 0;
    again.hidden = !job.outcome || job.operations.every((op) => job.operation_results[op].state === "COMPLETED");
    cancel.hidden = Boolean(job.outcome);
    erase.hidden = !job.outcome;
    showOriginal(job);
    cards.show(job);
    history.changed(job, position);
    for (const op of job.operations) {
      const now = job.operation_results[op].state;
      if (shownStates[op] && shownStates[op] !== now && now !== "RUNNING") announce(`${op}: ${now.toLowerCase()}`);
      shownStates[op] = now;
    }
    if (job.outcome && message.dataset.said !== `${job.revision}`) {
      message.dataset.said = `${job.revision}`;
      const best = Math.min(...Object.values(job.operation_results).filter((r) => r.artifact).map((r) => r.artifact.bytes));
      say({ SUCCEEDED: `Done. ${job.operations.length > 1 ? "The smallest is" : "It is"} ${saved(job.source.bytes, best)}.`, PARTIAL: "Done in part: not every operation has a result.", FAILED: "There is no result.", CANCELLED: "Cancelled." }[job.outcome], job.outcome === "FAILED");
    }
  }

  let shownSource;
  function showOriginal(job) {
    const key = `${job.source.sha256} ${Boolean(job.source.url)}`;
    if (shownSource === key) return;
    shownSource = key;
    const { source } = job;
    fill(original,
      source.url ? h("img", { className: "thumb large", src: source.url, alt: "The original", onerror: (event) => { event.target.replaceWith(h("div", { className: "thumb large none" }, h("span", { className: "hint" }, "No preview"))); } })
        : h("div", { className: "thumb large none" }),
      h("div", { className: "result-text" }, h("h2", {}, "Original"), h("p", { className: "size" }, bytes(source.bytes)), h("p", { className: "hint" }, `${source.format} · ${sides(source)}`, source.url && source.expires_at && h("span", { className: "expires", title: when(source.expires_at) }, ` · expires ${fromNow(source.expires_at)}`)),
        source.name_erased && h("p", { className: "hint" }, "Its name was erased"),
        !source.url && h("p", { className: "hint expired" }, "Expired")));
  }

  function say(text, isError = false) {
    message.textContent = text;
    message.classList.toggle("error", isError);
  }

  // command sends one, and goes on following from what it wrote.
  async function command(path, body, said) {
    try {
      const { position } = await ask(`/api/jobs/${id}/${path}`, { method: "POST", body });
      say(said);
      delete message.dataset.said;
      stop.again(position);
    } catch (fault) {
      say(fault.message, true);
    }
  }

  function retry(operations) {
    return command("retry", operations && { operations }, "Asked for again.");
  }

  async function stopJob() {
    if (await confirmed("Cancel this job?", "What is being worked on is stopped. Results that are there stay.", "Cancel the job")) await command("cancel", undefined, "Cancelling…");
  }

  async function remove() {
    if (!await confirmed("Delete this job?", "The picture, its results and the job itself are deleted on the server, for everybody and for good.", "Delete it")) return;
    try {
      await ask(`/api/jobs/${id}`, { method: "DELETE" });
    } catch (fault) {
      if (fault.status !== 404) return say(fault.message, true); // somebody else was first
    }
    local.remove(id);
    announce("The job was deleted.");
    location.hash = "#/history";
  }

  async function saveAll() {
    all.disabled = true;
    try {
      await downloadAll(newest, (text) => say(text));
      say("Saved.");
    } catch (fault) {
      say(fault.message, true);
    }
    all.disabled = false;
  }

  async function copy() {
    try {
      await navigator.clipboard.writeText(location.href);
      say("Link copied.");
    } catch {
      say(`Copying is not allowed here. The link: ${location.href}`);
    }
  }

  return { title: remembered?.name ?? "Job", stop: () => { stop(); history.stop(); } };
}
