// Which view is shown: the part of the address behind #.

import { h, fill, notice, announce } from "./dom.js";
import * as session from "./session.js";

// A view is a function (main, parameter) that fills main, and returns its title, and stop,
// called when another is shown. Each needs a scope.
const views = [
  [/^\/?$/, async () => (await import("./upload.js")).upload, "New", "submit"],
  [/^\/jobs\/([0-9a-f-]{36})$/, async () => (await import("./job.js")).job, "", "read"],
  [/^\/history(?:\/(all))?$/, async () => (await import("./history.js")).history, "History", "read"],
  [/^\/operations$/, async () => (await import("./operations.js")).operations, "Operations", "operate"],
];

let current, turn = 0, asked;

async function show() {
  const address = location.hash.slice(1);
  if (address === "main") return; // the link that skips the navigation
  const main = document.getElementById("main");
  const mine = ++turn;
  delete main.dataset.at; // it says which view is shown, once it is
  current?.stop?.();
  current = undefined;
  const [pattern, load, entry, scope] = views.find(([pattern]) => pattern.test(address)) ?? [];
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.textContent === entry) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!load) {
    document.title = "Not found — PixTools";
    main.dataset.at = address;
    fill(main, h("h1", {}, "Not found"), notice("empty", "There is no such page", null, h("a", { className: "button", href: "#/" }, "Submit a picture")));
    return;
  }
  try {
    if (!asked) {
      asked = session.begin();
      asked.catch(() => { asked = undefined; }); // it is asked again
    }
    await asked;
    const view = !session.admitted() ? session.signIn : session.may(scope) ? await load() : (root) => session.lacking(root, scope);
    if (mine !== turn) return; // another was asked for meanwhile
    const root = h("div", { className: "view" });
    fill(main, root);
    current = await view(root, address.match(pattern)[1]);
    if (mine !== turn) { current?.stop?.(); return; }
    document.title = `${current.title} — PixTools`;
    main.dataset.at = address;
    if (mine > 1) { // at the first, the browser has put the focus where it belongs
      main.focus({ preventScroll: true });
      scrollTo(0, 0);
      announce(current.title);
    }
  } catch (error) {
    if (mine !== turn) return;
    fill(main, h("h1", {}, "PixTools"), notice("error", "This page could not be loaded", error.message, h("button", { onclick: show }, "Try again")));
  }
}

export function begin() {
  window.addEventListener("hashchange", show);
  window.addEventListener("session", show);
  window.addEventListener("signed-out", session.ended);
  return show();
}
