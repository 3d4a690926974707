// A job's operations as cards: state, progress, attempt, error, result. Cards stay in place while the
// job goes on, so that nothing jumps and nobody loses the focus.

import { h, fill } from "./dom.js";
import { bytes, fromNow, saved, sides, when, word } from "./format.js";
import { badge } from "./badge.js";

const whose = { INPUT: "The picture is the reason", WORLD: "Something around PixTools failed", INTERNAL: "PixTools failed" };

// results makes the list; show(job) brings it up to date. compare(name) is asked for by a
// button; without it the cards have no buttons, as for a past state.
export function results({ compare, retry } = {}) {
  const list = h("ul", { className: "results", "aria-label": "Operations" });
  const cards = new Map();

  function show(job) {
    for (const name of [...cards.keys()]) {
      if (!job.operations.includes(name)) { cards.get(name).card.remove(); cards.delete(name); }
    }
    for (const name of job.operations) {
      if (!cards.has(name)) {
        cards.set(name, { card: h("li", { className: "result", dataset: { operation: name } }) });
        list.append(cards.get(name).card);
      }
      const known = cards.get(name);
      const result = job.operation_results[name];
      // What the card is made of. Links are signed anew at each read, and that is no change.
      const made = JSON.stringify([result.state, result.attempt, result.error, result.artifact?.sha256, Boolean(job.result_urls[name]), Boolean(job.outcome)]);
      if (known.made !== made) {
        known.made = made;
        known.card.dataset.state = result.state;
        fill(known.card, cardOf(job, name, result));
        known.bar = known.card.querySelector("progress");
      }
      const link = known.card.querySelector("a.download");
      if (link) link.href = job.result_urls[name];
      progress(name, result.progress);
    }
  }

  // progress shows how far an operation is, from 0 to 1.
  function progress(name, share) {
    const bar = cards.get(name)?.bar;
    if (!bar || !(share > 0)) return;
    bar.value = share;
    bar.nextSibling.textContent = `${Math.round(share * 100)} %`;
  }

  function cardOf(job, name, result) {
    const link = job.result_urls[name];
    const head = h("div", { className: "result-head" }, h("h3", {}, name), badge(result.state), result.attempt > 1 && h("span", { className: "hint" }, `attempt ${result.attempt}`));
    if (result.state === "COMPLETED") {
      const { artifact } = result;
      return [
        compare && link ? thumbnail(name, link) : h("div", { className: "thumb large none", "aria-hidden": "true" }),
        h("div", { className: "result-text" }, head,
          h("p", { className: "size" }, bytes(artifact.bytes), " ", h("span", { className: artifact.bytes <= job.source.bytes ? "good" : "warn" }, saved(job.source.bytes, artifact.bytes))),
          h("p", { className: "hint" }, `${artifact.format} · ${sides(artifact)}`, link && artifact.expires_at && h("span", { className: "expires", title: when(artifact.expires_at) }, ` · expires ${fromNow(artifact.expires_at)}`)),
          !link && compare && h("p", { className: "hint expired" }, "Expired: results are kept for a while only. Submit the picture again.")),
        compare && link && h("div", { className: "actions" },
          h("a", { className: "button download", href: link, "aria-label": `Download ${name}` }, "Download"),
          h("button", { className: "quiet", onclick: () => compare(name), "aria-label": `Compare ${name} with the original` }, "Compare")),
      ];
    }
    return [
      h("div", { className: "thumb large none", "aria-hidden": "true" }),
      h("div", { className: "result-text" }, head,
        result.state === "RUNNING" && h("div", { className: "running" }, h("progress", { max: 1, "aria-label": `${name} is running` }), h("span", { className: "hint" })),
        result.state === "PENDING" && h("p", { className: "hint" }, "Waits for its turn"),
        result.error && h("p", { className: "error" }, result.error.message),
        result.error && result.state === "FAILED" && h("p", { className: "hint" }, `${whose[result.error.kind] ?? word(result.error.kind)} (${result.error.code})`)),
      retry && job.outcome && ["FAILED", "CANCELLED"].includes(result.state) &&
        h("div", { className: "actions" }, h("button", { className: "quiet", onclick: () => retry([name]), "aria-label": `Retry ${name}` }, "Retry")),
    ];
  }

  function thumbnail(name, link) {
    return h("button", { className: "thumb large", onclick: () => compare(name), "aria-label": `Look at ${name}` },
      h("img", { src: link, alt: "", loading: "lazy", onerror: (event) => { event.target.parentElement.replaceWith(h("div", { className: "thumb large none" }, h("span", { className: "hint" }, "No preview"))); } }));
  }

  return { list, show, progress };
}
