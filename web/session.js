// Who is signed in. The key itself is not kept: the server gives the browser a cookie for it,
// which no script can read.

import { h, fill, notice } from "./dom.js";
import { ask, get, settings } from "./server.js";
import * as local from "./local.js";

let session;

// may says whether whoever is signed in has a scope; where no keys are asked for, everybody has.
export const may = (scope) => session?.scopes.includes(scope) ?? false;

// admitted is false where a key is needed and nobody is signed in.
export const admitted = () => session !== undefined && (session.authentication === "off" || session.signed_in);

// begin asks who is signed in, and shows it.
export async function begin() {
  await settings(); // what the page needs in any case is asked for at once
  take(await get("/api/session"));
}

function take(answer) {
  session = answer;
  if (admitted()) local.of(answer.tenant);
  show();
}

function show() {
  for (const link of document.querySelectorAll(".bar nav a[data-scope]")) link.hidden = !may(link.dataset.scope);
  const place = document.getElementById("session");
  if (session.authentication === "off") {
    fill(place, h("span", { className: "hint", title: "API_AUTH is off" }, "No API keys asked for: open to everyone who can reach this address"));
  } else if (session.signed_in) {
    fill(place, h("span", { className: "hint" }, h("strong", {}, session.tenant), ` · ${session.name} · ${session.scopes.join(", ")}`),
      h("button", { className: "quiet small", onclick: signOut }, "Sign out"));
  } else {
    fill(place);
  }
}

async function signOut() {
  changed((await ask("/api/session", { method: "DELETE" })).data);
}

// changed takes another session, and has the page shown anew.
function changed(answer) {
  take(answer);
  window.dispatchEvent(new CustomEvent("session"));
}

// ended: the server takes us for nobody.
export function ended() {
  if (session?.authentication !== "keys" || !session.signed_in) return;
  changed({ ...session, signed_in: false, scopes: [] });
}

// signIn is the view that asks for a key.
export function signIn(root) {
  const key = h("input", { type: "password", id: "key", name: "key", autocomplete: "current-password", spellcheck: false, required: true, "aria-describedby": "key-about" });
  const message = h("p", { id: "message", className: "message error", role: "alert" });
  const button = h("button", {}, "Sign in");
  fill(root, h("h1", {}, "Sign in"), h("form", { className: "sign-in", onsubmit: send },
    h("label", { htmlFor: "key" }, "API key"), key,
    h("p", { className: "hint", id: "key-about" }, "It begins with pixtools_. Who runs this PixTools makes one with ", h("code", {}, "pixtools keys create"), ". The page does not keep it: this browser gets a session in its place."),
    message, h("div", { className: "actions" }, button)));
  key.focus();

  async function send(event) {
    event.preventDefault();
    if (!key.value.trim()) { message.textContent = "Enter the API key first."; return; }
    button.disabled = true;
    message.textContent = "";
    try {
      changed((await ask("/api/session", { method: "POST", key: key.value.trim() })).data);
    } catch (error) {
      message.textContent = error.message;
      button.disabled = false;
      key.focus();
    }
  }
  return { title: "Sign in" };
}

// lacking is the view in place of one that the key may not see.
export function lacking(root, scope) {
  fill(root, h("h1", {}, "Not for this key"), notice("empty", `This needs the scope ${scope}`, "Sign out, and in again with a key that has it."));
  return { title: "Not for this key" };
}
