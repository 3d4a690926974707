// Building the page: elements from JavaScript, without strings of HTML that a file name could break out of.

// h makes an element. Properties that begin with "on" are listeners; what is no property of
// the element is an attribute; undefined, null and false are left out.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element && name !== "list" && name !== "form") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

// fill replaces what is in an element.
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
}

// table is one that scrolls by itself where there is no room for it.
export function table(about, columns, rows) {
  return h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": about }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col" }, column)))), h("tbody", {}, rows)));
}

// announce has screen readers say something that others see.
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

// confirmed asks in a dialog, and is whether the answer was yes.
export function confirmed(title, body, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { className: "dialog", "aria-labelledby": "confirm-title", onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      h("form", { method: "dialog" },
        h("h2", { id: "confirm-title" }, title),
        h("div", { className: "dialog-body" }, body),
        h("div", { className: "actions" },
          h("button", { value: "no", className: "quiet" }, "Keep it as it is"),
          h("button", { value: "yes" }, yes))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// notice is what a view shows in place of what it has not got.
export function notice(kind, title, text, ...actions) {
  return h("div", { className: `notice ${kind}`, role: kind === "error" ? "alert" : undefined },
    h("p", { className: "notice-title" }, title), text && h("p", {}, text), actions.length > 0 && h("div", { className: "actions" }, actions));
}

// loading is a notice that something is on its way.
export const loading = (what) => h("p", { className: "loading", role: "status" }, h("span", { className: "spinner", "aria-hidden": "true" }), `Loading ${what}…`);
