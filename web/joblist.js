// A list of jobs with what can be done about each: the same for this browser's and for the server's.

import { h, confirmed } from "./dom.js";
import { ask } from "./server.js";
import { badge } from "./badge.js";

export const isOpen = (state) => ["PENDING", "PROCESSING", undefined].includes(state);
const retriable = ["FAILED", "PARTIAL", "CANCELLED"];

// jobList shows entries: id, title, hint, state, and note, which says why nothing can be done
// about it. say(text, isError) is told what became of commands, and changed(id, position) that there was one;
// remove(entry), if any, lets an entry go; deleted(id, position) is told of a job that is gone from the server.
export function jobList(label, { say, changed, remove, deleted }) {
  const list = h("ul", { className: "jobs", "aria-label": label });
  const rows = new Map();

  function show(entries) {
    for (const entry of entries) {
      const made = JSON.stringify(entry);
      const known = rows.get(entry.id);
      if (known?.made === made) continue;
      const element = row(entry);
      if (known) {
        const focused = known.element.contains(document.activeElement) && (document.activeElement.dataset.action ?? "open");
        known.element.replaceWith(element);
        if (focused) (element.querySelector(`[data-action=${focused}]`) ?? element.querySelector("a")).focus();
      }
      rows.set(entry.id, { made, element });
    }
    // In order, without moving what is in its place: moving takes the focus away.
    entries.forEach((entry, i) => {
      const { element } = rows.get(entry.id);
      if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
    });
    while (list.children.length > entries.length) {
      rows.delete(list.lastChild.dataset.job);
      list.lastChild.remove();
    }
    list.hidden = entries.length === 0;
  }

  function row(entry) {
    const { id, title, hint, state, note } = entry;
    return h("li", { className: "job-row", dataset: { job: id, state } },
      h("div", { className: "job-text" },
        h("a", { href: `#/jobs/${id}`, className: "name", dataset: { action: "open" } }, title),
        h("span", { className: "hint" }, hint),
        note && h("span", { className: "hint expired" }, note)),
      badge(state),
      h("div", { className: "actions" },
        !note && isOpen(state) && h("button", { className: "quiet small", dataset: { action: "cancel" }, "aria-label": `Cancel ${title}`, onclick: () => cancel(entry) }, "Cancel"),
        !note && retriable.includes(state) && h("button", { className: "quiet small", dataset: { action: "retry" }, "aria-label": `Retry ${title}`, onclick: () => command(entry, "retry", "asked for again.") }, "Retry"),
        !isOpen(state) && state !== "GONE" && h("button", { className: "quiet small", dataset: { action: "delete" }, "aria-label": `Delete ${title}`, onclick: () => erase(entry) }, "Delete"),
        remove && h("button", { className: "quiet small", dataset: { action: "remove" }, "aria-label": `Remove ${title} from this list`, onclick: () => remove(entry) }, "Remove")));
  }

  async function cancel(entry) {
    if (await confirmed("Cancel this job?", `${entry.title}: what is being worked on is stopped. Results that are there stay.`, "Cancel the job")) await command(entry, "cancel", "cancelling…");
  }

  async function erase({ id, title }) {
    if (!await confirmed("Delete this job?", `${title}: the picture, its results and the job itself are deleted on the server, for everybody and for good.`, "Delete it")) return;
    let position = "";
    try {
      ({ position } = await ask(`/api/jobs/${id}`, { method: "DELETE" }));
    } catch (fault) {
      if (fault.status !== 404) return say(`${title}: ${fault.message}`, true); // somebody else was first
    }
    say(`${title} deleted.`);
    deleted(id, position);
    (list.querySelector("a") ?? document.getElementById("main")).focus();
  }

  async function command({ id, title }, name, said) {
    try {
      const { position } = await ask(`/api/jobs/${id}/${name}`, { method: "POST" });
      say(`${title}: ${said}`);
      changed(id, position);
    } catch (fault) {
      say(`${title}: ${fault.message}`, true);
      changed(id, "");
    }
  }

  return { list, show };
}

// speaker is a line that says what happened.
export function speaker() {
  const line = h("p", { id: "message", className: "message", role: "status" });
  return { line, say(text, isError = false) {
    line.textContent = text;
    line.classList.toggle("error", isError);
  } };
}
