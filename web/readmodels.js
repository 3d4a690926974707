// The read models that there are: the live one, and what replays have made, or make, beside it.

import { h, fill, notice, loading, table } from "./dom.js";
import { bytes, when } from "./format.js";

// A state in words, its colour, and what to do about it.
const states = {
  live: ["Live", "good", "Queries are answered from it."],
  previous: ["Previous", "idle", "It was live before. pixtools replay --rollback makes it live again."],
  building: ["Being built", "busy", "A replay is at work."],
  built: ["Built", "good", "pixtools replay --schema with its name: --diff compares it, --promote makes it live."],
  past: ["Past state", "idle", "It shows a past state, and cannot be made live."],
  cut_off: ["Cut off", "bad", "Its replay ended before it was whole. The next replay removes it."],
  discarded: ["Not needed", "idle", "The next replay removes it."],
  unknown: ["Unknown", "idle", "No replay of PixTools made it."],
};
const whole = new Intl.NumberFormat();

export function readModels() {
  const body = h("div", {}, loading("the read models"));
  const section = h("section", { className: "read-models" }, h("h2", {}, "Read models"), body);

  function show(answer) {
    const all = answer.read_models;
    if (all.length === 0) { fill(body, notice("empty", "No read model", "pixtools replay --promote makes one of the log.")); return; }
    fill(body, table("Read models", ["Name", "State", "Since", "Size", "Replay"], all.map(row)));
  }

  function row(model) {
    const [name, kind, about] = states[model.state];
    return h("tr", { dataset: { readModel: model.name, state: model.state } },
      h("th", { scope: "row" }, h("code", {}, model.name), model.until && h("span", { className: "hint" }, ` until ${model.until}`)),
      h("td", {}, h("span", { className: `badge ${kind}` }, name)),
      h("td", {}, model.since ? h("time", { dateTime: model.since }, when(model.since)) : "–"),
      h("td", {}, bytes(model.bytes)),
      h("td", { className: "reason" }, model.progress && progress(model), h("span", { className: "hint" }, about)));
  }

  function progress({ name, progress: now, state }) {
    const cut = state === "cut_off";
    const told = [cut ? `It came as far as: ${now.phase}` : now.phase];
    if (now.total !== null) told.push(`${Math.floor(100 * now.records / now.total)} %, ${whole.format(now.records)} of ${whole.format(now.total)} records`);
    if (now.records_per_second !== null) told.push(`${whole.format(now.records_per_second)} a second`);
    told.push(cut ? `last heard of ${when(now.updated)}` : `since ${when(now.started)}`);
    if (now.estimated_end) told.push(`until about ${when(now.estimated_end)}`);
    return [now.total !== null && h("progress", { max: now.total, value: now.records, "aria-label": `${name}: ${now.phase}` }), h("span", {}, told.join(", "))];
  }

  return { section, show, fault: (text) => fill(body, notice("error", "The read models cannot be read", text)) };
}
