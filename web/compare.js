// The original and a result over one another, with a line between them that moves, and zoom.

import { h } from "./dom.js";
import { bytes, saved } from "./format.js";

export function compare(job, name) {
  const result = job.operation_results[name].artifact;
  const before = h("img", { className: "before", src: job.source.url ?? "", alt: "The original", draggable: false });
  const after = h("img", { className: "after", src: job.result_urls[name], alt: `The result of ${name}`, draggable: false });
  const line = h("div", { className: "line", "aria-hidden": "true" });
  const stage = h("div", { className: "stage" }, before, after, line);
  const frame = h("div", { className: "frame", tabIndex: 0, role: "group", "aria-label": "Pictures; arrow keys move them when they are zoomed" }, stage);
  const split = h("input", { type: "range", id: "split", min: 0, max: 100, value: 50, step: 1, oninput: place });
  const zoom = h("input", { type: "range", id: "zoom", min: 1, max: 8, value: 1, step: 0.5, oninput: magnify });
  const scale = h("output", { htmlFor: "zoom" }, "1×");
  const missing = !job.source.url;
  const dialog = h("dialog", { className: "compare", "aria-labelledby": "compare-title", onclose: () => { observer.disconnect(); dialog.remove(); } },
    h("div", { className: "compare-head" },
      h("h2", { id: "compare-title" }, `Original and ${name}`),
      h("span", { className: "hint" }, `${bytes(job.source.bytes)} → ${bytes(result.bytes)}, ${saved(job.source.bytes, result.bytes)}`),
      h("form", { method: "dialog" }, h("button", { className: "quiet" }, "Close"))),
    frame,
    h("div", { className: "compare-controls" },
      h("div", { className: "control" }, h("label", { htmlFor: "split" }, missing ? "The original has expired" : `Original ↔ ${name}`), split),
      h("div", { className: "control" }, h("label", { htmlFor: "zoom" }, "Zoom"), zoom, scale)));
  split.disabled = missing;
  if (missing) { split.value = 0; before.hidden = true; }
  stage.style.setProperty("--width", result.width);
  stage.style.setProperty("--height", result.height);

  // place puts the line where the slider is, within what is seen of the stage.
  function place() {
    const at = frame.scrollLeft + Number(split.value) / 100 * frame.clientWidth - stage.offsetLeft;
    stage.style.setProperty("--split", `${Math.max(0, Math.min(at, stage.clientWidth))}px`);
  }

  function magnify() {
    const middle = [(frame.scrollLeft + frame.clientWidth / 2) / frame.scrollWidth, (frame.scrollTop + frame.clientHeight / 2) / frame.scrollHeight];
    stage.style.setProperty("--zoom", zoom.value);
    scale.textContent = `${zoom.value}×`;
    frame.classList.toggle("zoomed", Number(zoom.value) > 1);
    frame.scrollLeft = middle[0] * frame.scrollWidth - frame.clientWidth / 2;
    frame.scrollTop = middle[1] * frame.scrollHeight - frame.clientHeight / 2;
    place();
  }

  // Dragging moves the line; zoomed in, it moves the pictures, as on a map.
  let from;
  frame.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" && Number(zoom.value) > 1) return; // scrolling does it
    from = { x: event.clientX, y: event.clientY, left: frame.scrollLeft, top: frame.scrollTop };
    frame.setPointerCapture(event.pointerId);
    drag(event);
  });
  frame.addEventListener("pointermove", (event) => { if (from) drag(event); });
  frame.addEventListener("pointerup", () => { from = undefined; });
  function drag(event) {
    if (Number(zoom.value) > 1) {
      frame.scrollTo(from.left + from.x - event.clientX, from.top + from.y - event.clientY);
    } else if (!missing) {
      const box = frame.getBoundingClientRect();
      split.value = (event.clientX - box.left) / box.width * 100;
      place();
    }
  }
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom.value = Number(zoom.value) - Math.sign(event.deltaY) * 0.5;
    magnify();
  }, { passive: false });
  frame.addEventListener("scroll", place);
  const observer = new ResizeObserver(place);
  observer.observe(frame);
  after.addEventListener("load", place);

  document.body.append(dialog);
  dialog.showModal();
  split.focus();
  place();
}
