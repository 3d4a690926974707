// Where the page begins: the router, and whether the server is reached.

import { begin } from "./router.js";

const banner = document.getElementById("offline");

function offline(yes) {
  if (banner.hidden === !yes) return;
  banner.hidden = !yes;
  banner.textContent = yes ? "The server cannot be reached. What you see may be old; the page goes on by itself when it is back." : "";
}

window.addEventListener("reached", (event) => offline(!event.detail));
window.addEventListener("offline", () => offline(true));
window.addEventListener("online", () => offline(false));

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});

begin();
