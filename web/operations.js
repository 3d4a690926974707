// The view for operators: what waits, what happened, who is behind, which read models there are, what was
// given up.

import { h, fill, notice, loading, table } from "./dom.js";
import { duration, when } from "./format.js";
import { get } from "./server.js";
import { charts } from "./charts.js";
import { deadLetters } from "./deadletters.js";
import { readModels } from "./readmodels.js";

// between is the pause between two looks, in milliseconds.
const between = 2000;

export async function operations(root) {
  const tiles = h("div", { className: "tiles" });
  const queues = h("div", {}, loading("the queues"));
  const groups = h("div", {}, loading("the consumer groups"));
  const drawn = charts();
  const models = readModels();
  const letters = deadLetters();
  let stopped = false, timer;
  fill(root, h("h1", {}, "Operations"), tiles,
    h("section", {}, h("h2", {}, "Last hour"), drawn.element),
    h("section", {}, h("h2", {}, "Queues"), queues),
    h("section", {}, h("h2", {}, "Consumer groups"), groups),
    models.section, letters.section);

  async function look() {
    const [waiting, happened, lag, built] = await Promise.allSettled(["/api/queues", "/api/activity", "/api/lag", "/api/read-models"].map((path) => get(path)));
    if (stopped) return;
    if (waiting.status === "fulfilled") showQueues(waiting.value);
    else fill(queues, notice("error", "The queues cannot be read", waiting.reason.message));
    if (happened.status === "fulfilled") drawn.show(happened.value);
    else drawn.fault(happened.reason.message);
    if (lag.status === "fulfilled") showGroups(lag.value);
    else fill(groups, notice("error", "The consumer groups cannot be read", lag.reason.message));
    if (built.status === "fulfilled") models.show(built.value);
    else models.fault(built.reason.message);
    if (waiting.status === "fulfilled" && happened.status === "fulfilled") showTiles(waiting.value, happened.value);
    timer = setTimeout(look, between);
  }

  const seen = () => { clearTimeout(timer); if (!document.hidden) look(); };
  document.addEventListener("visibilitychange", seen);

  function tile(name, value, about, kind = "") {
    return h("div", { className: `tile ${kind}` }, h("span", { className: "hint" }, name), h("strong", {}, value), h("span", { className: "hint" }, about));
  }

  function showTiles(waiting, happened) {
    const all = Object.values(waiting.queues);
    const sum = (name) => all.reduce((total, queue) => total + queue[name], 0);
    const oldest = Math.max(0, ...all.map((queue) => queue.oldest_waiting_seconds ?? 0));
    const recent = happened.steps.filter((step) => Date.parse(happened.now) - Date.parse(step.at) <= 60_000);
    const count = (steps, name) => steps.reduce((total, step) => total + Object.values(step[name]).reduce((a, b) => a + b, 0), 0);
    const failed = count(happened.steps, "failed");
    fill(tiles,
      tile("Results in the last minute", String(count(recent, "completed")), `${count(happened.steps, "completed")} in the last hour`),
      tile("Waiting", String(sum("waiting")), `${sum("running")} running`),
      tile("Oldest waiting", oldest > 0 ? duration(oldest) : "–", `refused beyond ${duration(waiting.max_age_seconds)}`, oldest > waiting.max_age_seconds / 2 ? "warn" : ""),
      tile("Failed in the last hour", String(failed), "operations, of whatever reason", failed > 0 ? "warn" : ""));
  }

  const line = (data, name, cells) => h("tr", { dataset: data }, h("th", { scope: "row" }, h("code", {}, name)), cells.map((cell) => h("td", {}, cell)));

  function showQueues(answer) {
    fill(queues, table("Queues by operation", ["Group", "Waiting", "Running", "Oldest waiting"],
      Object.entries(answer.queues).map(([name, queue]) => line({ group: `pixtools.op.${name}` }, `pixtools.op.${name}`,
        [String(queue.waiting), String(queue.running), queue.oldest_waiting_seconds === null ? "–" : duration(queue.oldest_waiting_seconds)]))),
      h("p", { className: "hint" }, `As the read model has it, as of ${when(answer.as_of)}.`));
  }

  function showGroups(answer) {
    const all = Object.entries(answer.groups).sort(([a], [b]) => a.localeCompare(b));
    if (all.length === 0) { fill(groups, notice("empty", "No consumer groups", "Nobody follows the log.")); return; }
    fill(groups, table("Lag by consumer group", ["Group", "Records behind", "Lag"],
      all.map(([name, lag]) => line({ lag: name }, name, lag.error ? ["–", lag.error] : [String(lag.records), lag.records === 0 ? "none" : duration(lag.seconds)]))),
      h("p", { className: "hint" }, `Lag is the age of the oldest record of the log that the group has not passed. A group that nobody runs falls behind for ever. As of ${when(answer.as_of)}.`));
  }

  look();
  return { title: "Operations", stop() { stopped = true; clearTimeout(timer); document.removeEventListener("visibilitychange", seen); drawn.stop(); letters.stop(); } };
}
