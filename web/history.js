// The view of jobs: those of this browser, or all that the server has.

import { h, fill } from "./dom.js";
import { localHistory } from "./localhistory.js";
import { serverHistory } from "./serverhistory.js";

export async function history(root, which) {
  const tab = (address, name, mine) => h("a", { href: address, "aria-current": mine && "page" }, name);
  const body = h("div", {});
  fill(root, h("h1", {}, "History"),
    h("nav", { className: "tabs", "aria-label": "Which jobs" }, tab("#/history", "This browser", which !== "all"), tab("#/history/all", "All jobs", which === "all")), body);
  const stop = which === "all" ? serverHistory(body) : localHistory(body);
  return { title: which === "all" ? "All jobs" : "History", stop };
}
