// The jobs of this browser.

import { h, fill, notice, confirmed } from "./dom.js";
import { bytes, when } from "./format.js";
import { ask, get } from "./server.js";
import { badge } from "./badge.js";
import * as local from "./local.js";

// atOnce is how many jobs are asked for at the same time, between how often open ones are, in milliseconds.
const atOnce = 4;
const between = 2000;
const open = (state) => ["PENDING", "PROCESSING", undefined].includes(state);

export async function history(root) {
  const list = h("ul", { className: "jobs", "aria-label": "Jobs of this browser" });
  const message = h("p", { id: "message", className: "message", role: "status" });
  const empty = notice("empty", "No jobs yet", "What you submit shows up here, and stays over a reload.", h("a", { className: "button", href: "#/" }, "Submit a picture"));
  const rows = new Map();
  let stopped = false, timer;
  fill(root, h("h1", {}, "History"), h("p", { className: "hint" }, "Jobs that this browser submitted. They are remembered here, not in an account."), message, list, empty);
  show();
  refresh(() => true);

  function show() {
    const jobs = local.all();
    empty.hidden = jobs.length > 0;
    list.hidden = jobs.length === 0;
    for (const job of jobs) {
      const state = job.gone ? "GONE" : job.expired ? "EXPIRED" : job.state ?? "PENDING";
      const made = `${state} ${job.state}`;
      let row = rows.get(job.id);
      if (row?.made === made) continue;
      const fresh = rowOf(job, state);
      if (row) {
        const focused = row.element.contains(document.activeElement) && document.activeElement.dataset.action;
        row.element.replaceWith(fresh);
        if (focused) (fresh.querySelector(`[data-action=${focused}]`) ?? fresh.querySelector("a")).focus();
      }
      rows.set(job.id, { made, element: fresh });
    }
    // In order, without moving what is in its place: moving takes the focus away.
    jobs.forEach((job, i) => { const { element } = rows.get(job.id); if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null); });
    while (list.children.length > jobs.length) list.lastChild.remove();
  }

  function rowOf(job, state) {
    const about = { GONE: "The server does not know it any more.", EXPIRED: "Its pictures are not kept any more. Submit them again." }[state];
    return h("li", { className: "job-row", dataset: { job: job.id, state } },
      h("div", { className: "job-text" },
        h("a", { href: `#/jobs/${job.id}`, className: "name" }, job.name),
        h("span", { className: "hint" }, [job.operations.join(", "), bytes(job.bytes), when(job.at)].join(" · ")),
        about && h("span", { className: "hint expired" }, about)),
      badge(state),
      h("div", { className: "actions" },
        !job.gone && open(job.state) && h("button", { className: "quiet small", dataset: { action: "cancel" }, "aria-label": `Cancel ${job.name}`, onclick: () => stopJob(job) }, "Cancel"),
        !job.gone && !job.expired && ["FAILED", "PARTIAL", "CANCELLED"].includes(job.state) && h("button", { className: "quiet small", dataset: { action: "retry" }, "aria-label": `Retry ${job.name}`, onclick: () => command(job, "retry") }, "Retry"),
        h("button", { className: "quiet small", dataset: { action: "remove" }, "aria-label": `Remove ${job.name} from this list`, onclick: () => remove(job) }, "Remove")));
  }

  async function stopJob(job) {
    if (await confirmed("Cancel this job?", `${job.name}: what is being worked on is stopped. Results that are there stay.`, "Cancel the job")) await command(job, "cancel");
  }

  async function command(job, name) {
    try {
      const { position } = await ask(`/api/jobs/${job.id}/${name}`, { method: "POST" });
      local.hear(job.id, { position, state: "PENDING" });
      say(name === "retry" ? `${job.name}: asked for again.` : `${job.name}: cancelling…`);
    } catch (fault) {
      say(`${job.name}: ${fault.message}`, true);
    }
    if (!stopped) refresh((other) => other.id === job.id);
  }

  function remove(job) {
    local.remove(job.id);
    rows.get(job.id).element.remove();
    rows.delete(job.id);
    say(`${job.name} removed from this list. The server keeps the job.`);
    (list.querySelector("a") ?? document.getElementById("main")).focus();
    show();
  }

  // refresh asks for jobs, and goes on asking for those that are open.
  async function refresh(which) {
    clearTimeout(timer);
    const queue = document.hidden ? [] : local.all().filter((job) => !job.gone && which(job));
    let away = "";
    await Promise.all(Array.from({ length: atOnce }, async () => {
      while (queue.length > 0 && !stopped && !away) {
        const job = queue.shift();
        try {
          local.hear(job.id, local.newsOf(await get(`/api/jobs/${job.id}${job.position ? `?after=${encodeURIComponent(job.position)}` : ""}`)));
        } catch (fault) {
          if (fault.status === 404) local.hear(job.id, { gone: true });
          else if (fault.passing) away = fault.message;
        }
      }
    }));
    if (stopped) return;
    if (away) say(away, true); else if (message.classList.contains("error")) say("");
    show();
    timer = setTimeout(() => refresh((job) => open(job.state)), between);
  }

  function say(text, isError = false) {
    message.textContent = text;
    message.classList.toggle("error", isError);
  }

  return { title: "History", stop() { stopped = true; clearTimeout(timer); } };
}
