// What was given up: a list, and asking for its work again, after a look at what that would do.

import { h, fill, notice, loading, table } from "./dom.js";
import { when } from "./format.js";
import { ask, get } from "./server.js";

const page = 20;

export function deadLetters() {
  const body = h("div", {}, loading("dead letters"));
  const message = h("p", { className: "message", role: "status", id: "letters-message" });
  const state = h("select", { id: "letters-state", onchange: () => load() }, h("option", { value: "open" }, "Open"), h("option", { value: "all" }, "All"));
  const preview = h("button", { onclick: () => look(), disabled: true }, "Preview redrive");
  const discard = h("button", { className: "quiet", onclick: () => askReason(), disabled: true }, "Discard…");
  const section = h("section", { className: "letters" }, h("h2", {}, "Dead letters"),
    h("p", { className: "hint" }, "Work that was given up for another reason than the picture."),
    h("div", { className: "toolbar" }, h("label", { htmlFor: "letters-state" }, "Show"), state, h("button", { className: "quiet", onclick: () => load() }, "Refresh"), preview, discard), message, body);
  let chosen = new Set(), letters = [], more = 0, stopped = false;
  load();

  async function load(after) {
    try {
      const answer = await get(`/api/dead-letters?state=${state.value}&limit=${page}${after ? `&after=${after}` : ""}`);
      if (stopped) return;
      letters = after ? [...letters, ...answer.dead_letters] : answer.dead_letters;
      if (!after) chosen = new Set();
      more = answer.more;
      show(answer.next);
    } catch (fault) {
      fill(body, notice("error", "Dead letters cannot be read", fault.message, h("button", { onclick: () => load() }, "Try again")));
    }
  }

  function show(next) {
    enable();
    if (letters.length === 0) { fill(body, notice("empty", "No dead letters", "Nothing was given up.")); return; }
    const open = letters.filter((letter) => letter.state === "OPEN");
    const every = h("input", { type: "checkbox", "aria-label": "Choose all that are open", onchange: () => {
      chosen = new Set(every.checked ? open.map((letter) => letter.id) : []);
      for (const box of body.querySelectorAll("tbody input")) box.checked = every.checked;
      enable();
    } });
    fill(body, table("Dead letters", [every, "Given up", "Operation", "Reason", "Attempts", "Job", "State"], letters.map(row)),
      more > 0 && h("button", { className: "quiet", onclick: () => load(next) }, `Show more (${more})`));
  }

  function row(letter) {
    const what = letter.operation || "record";
    const box = letter.state === "OPEN" && h("input", { type: "checkbox", value: letter.id, checked: chosen.has(letter.id), "aria-label": `Choose ${what} of job ${letter.job_id}`,
      onchange: (event) => { if (event.target.checked) chosen.add(letter.id); else chosen.delete(letter.id); enable(); } });
    return h("tr", { dataset: { letter: letter.id } }, h("td", {}, box), h("td", {}, h("time", { dateTime: letter.at }, when(letter.at))), h("td", {}, what),
      h("td", { className: "reason" }, h("strong", {}, letter.code), h("span", { className: "hint" }, letter.message)),
      h("td", {}, String(letter.attempts)), h("td", {}, letter.job_id ? h("a", { href: `#/jobs/${letter.job_id}`, "aria-label": `Job ${letter.job_id}` }, letter.job_id.slice(0, 8)) : "–"), h("td", {}, letter.state.toLowerCase()));
  }

  function enable() {
    preview.disabled = discard.disabled = chosen.size === 0;
    preview.textContent = chosen.size > 0 ? `Preview redrive (${chosen.size})` : "Preview redrive";
  }

  const treat = async (path, more) => (await ask(`/api/dead-letters/${path}`, { method: "POST", body: { ids: [...chosen], ...more } })).data;

  // look shows what a redrive would do, and does it where that is wanted.
  async function look() {
    try {
      const answer = await treat("redrive", { dry_run: true });
      const some = answer.results.some((result) => result.action !== "none");
      const dialog = h("dialog", { className: "dialog wide", "aria-labelledby": "redrive-title", onclose: async () => { dialog.remove(); if (dialog.returnValue === "yes") await redrive(); } },
        h("form", { method: "dialog" }, h("h2", { id: "redrive-title" }, "What a redrive would do"),
          h("ul", { className: "preview dialog-body" }, answer.results.map((result) => h("li", { dataset: { action: result.action } },
            h("strong", {}, result.action === "none" ? "nothing" : result.action), ` ${result.operation || "record"} of job ${result.job_id.slice(0, 8)}`, h("span", { className: "hint" }, result.detail)))),
          h("div", { className: "actions" }, h("button", { value: "no", className: "quiet" }, "Close"), h("button", { value: "yes", disabled: !some }, "Redrive"))));
      document.body.append(dialog);
      dialog.showModal();
    } catch (fault) {
      say(fault.message, true);
    }
  }

  async function redrive() {
    try {
      const answer = await treat("redrive", {});
      const done = answer.results.filter((result) => result.action !== "none").length;
      say(`${done} redriven${done < answer.results.length ? `, ${answer.results.length - done} left as they were` : ""}.`);
    } catch (fault) {
      say(fault.message, true);
    }
    load();
  }

  function askReason() {
    const reason = h("input", { type: "text", id: "discard-reason", required: true, maxLength: 300 });
    const dialog = h("dialog", { className: "dialog", "aria-labelledby": "discard-title", onclose: async () => {
      dialog.remove();
      if (dialog.returnValue !== "yes") return;
      try {
        const answer = await treat("discard", { reason: reason.value });
        say(`${answer.results.filter((result) => result.action === "discard").length} discarded.`);
      } catch (fault) {
        say(fault.message, true);
      }
      load();
    } }, h("form", { method: "dialog" }, h("h2", { id: "discard-title" }, `Discard ${chosen.size}?`),
      h("div", { className: "dialog-body" }, h("label", { htmlFor: "discard-reason" }, "Why? The reason is kept with them."), reason),
      h("div", { className: "actions" }, h("button", { value: "no", className: "quiet", formNoValidate: true }, "Close"), h("button", { value: "yes" }, "Discard"))));
    document.body.append(dialog);
    dialog.showModal();
    reason.focus();
  }

  function say(text, isError = false) {
    message.textContent = text;
    message.classList.toggle("error", isError);
  }

  return { section, stop() { stopped = true; } };
}
