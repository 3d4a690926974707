// The view for operators: what waits, what happened, what was given up.

import { h, fill, notice, loading } from "./dom.js";
import { duration, when } from "./format.js";
import { get } from "./server.js";
import { charts } from "./charts.js";
import { deadLetters } from "./deadletters.js";

// between is the pause between two looks, in milliseconds.
const between = 2000;

export async function operations(root) {
  const tiles = h("div", { className: "tiles" });
  const queues = h("div", {}, loading("the queues"));
  const drawn = charts();
  const letters = deadLetters();
  let stopped = false, timer;
  fill(root, h("h1", {}, "Operations"), tiles,
    h("section", {}, h("h2", {}, "Last hour"), drawn.element),
    h("section", {}, h("h2", {}, "Queues"), queues),
    letters.section);

  async function look() {
    const [waiting, happened] = await Promise.allSettled([get("/api/queues"), get("/api/activity")]);
    if (stopped) return;
    if (waiting.status === "fulfilled") showQueues(waiting.value);
    else fill(queues, notice("error", "The queues cannot be read", waiting.reason.message));
    if (happened.status === "fulfilled") drawn.show(happened.value);
    else drawn.fault(happened.reason.message);
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

  function showQueues(answer) {
    // The read model's own lag: how old what it tells is.
    const behind = Math.max(0, (Date.now() - Date.parse(answer.as_of)) / 1000);
    const line = (group, cells) => h("tr", { dataset: { group } }, h("th", { scope: "row" }, h("code", {}, group)), cells.map((cell) => h("td", {}, cell)));
    fill(queues, h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Queues by consumer group" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Group", "Waiting", "Running", "Lag"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {},
        Object.entries(answer.queues).map(([name, queue]) => line(`pixtools.op.${name}`,
          [String(queue.waiting), String(queue.running), queue.oldest_waiting_seconds === null ? "–" : duration(queue.oldest_waiting_seconds)])),
        line("pixtools.projector", ["–", "–", duration(behind)])))),
      h("p", { className: "hint" }, `Lag is for how long the oldest waiting work waits; of the projector, how old the read model is. As of ${when(answer.as_of)}.`));
  }

  look();
  return { title: "Operations", stop() { stopped = true; clearTimeout(timer); document.removeEventListener("visibilitychange", seen); drawn.stop(); letters.stop(); } };
}
