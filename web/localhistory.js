// The jobs of this browser.

import { h, fill, notice } from "./dom.js";
import { bytes, when } from "./format.js";
import { get } from "./server.js";
import { jobList, isOpen, speaker } from "./joblist.js";
import * as local from "./local.js";

// atOnce is how many jobs are asked for at the same time, between how often open ones are, in milliseconds.
const atOnce = 4;
const between = 2000;

const notes = { GONE: "The server does not know it any more.", EXPIRED: "Its pictures are not kept any more. Submit them again." };

export function localHistory(root) {
  const { line, say } = speaker();
  const jobs = jobList("Jobs of this browser", { say, remove, deleted(id) { local.remove(id); show(); }, changed(id, position) {
    local.hear(id, position ? { position, state: "PENDING" } : {});
    if (!stopped) refresh((job) => job.id === id);
  } });
  const empty = notice("empty", "No jobs yet", "What you submit shows up here, and stays over a reload.", h("a", { className: "button", href: "#/" }, "Submit a picture"));
  let stopped = false, timer;
  fill(root, h("p", { className: "hint" }, "Jobs that this browser submitted. They are remembered here, not in an account."), line, jobs.list, empty);
  show();
  refresh(() => true);

  function show() {
    const all = local.all();
    jobs.show(all.map((job) => {
      const state = job.gone ? "GONE" : job.expired ? "EXPIRED" : job.state ?? "PENDING";
      return { id: job.id, title: job.name, hint: [job.operations.join(", "), bytes(job.bytes), when(job.at)].join(" · "), state, note: notes[state] };
    }));
    empty.hidden = all.length > 0;
  }

  function remove({ id, title }) {
    local.remove(id);
    show();
    say(`${title} removed from this list. The server keeps the job.`);
    (jobs.list.querySelector("a") ?? document.getElementById("main")).focus();
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
    if (away) say(away, true); else if (line.classList.contains("error")) say("");
    show();
    timer = setTimeout(() => refresh((job) => isOpen(job.state)), between);
  }

  return () => { stopped = true; clearTimeout(timer); };
}
