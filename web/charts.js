// Two charts of the last hour, drawn by uPlot: results by operation, failures by kind. Beside each
// stand its sums in words, for those who do not see it.

import uPlot from "/vendor/uPlot.js";
import { h, fill } from "./dom.js";

const height = 200;
const minutes = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const kinds = ["INPUT", "WORLD", "INTERNAL"];

export function charts() {
  if (!document.querySelector('link[href="/vendor/uPlot.css"]')) document.head.append(h("link", { rel: "stylesheet", href: "/vendor/uPlot.css" }));
  const message = h("p", { className: "hint" });
  const results = chart("Results a minute, by operation");
  const failures = chart("Failures a minute, by kind");
  const element = h("div", {}, h("div", { className: "charts" }, results.figure, failures.figure), message);

  // show draws the steps; those in which nothing happened are told as zero.
  function show({ since, now, step_seconds: step, steps }) {
    const last = Math.floor(Date.parse(now) / 1000 / step) * step;
    const first = Math.max(last - 3600, Math.floor(Date.parse(since) / 1000 / step) * step - 6 * step);
    const at = new Map(steps.map((one) => [Date.parse(one.at) / 1000, one]));
    const times = [];
    for (let time = first; time <= last; time += step) times.push(time);
    const rows = (field, names) => names.map((name) => times.map((time) => (at.get(time)?.[field][name] ?? 0) * 60 / step));
    const sums = (field, names) => names.map((name) => [name, steps.reduce((total, one) => total + (one[field][name] ?? 0), 0)]);
    const operations = [...new Set(steps.flatMap((one) => Object.keys(one.completed)))].sort();
    results.draw(times, operations, rows("completed", operations), sums("completed", operations));
    failures.draw(times, kinds, rows("failed", kinds), sums("failed", kinds));
    message.textContent = Date.parse(now) - Date.parse(since) < 3600_000 ? `Counted since ${new Date(since).toLocaleTimeString()}, when this process started.` : "";
  }

  return { element, show, fault: (text) => { message.textContent = text; }, stop() { results.stop(); failures.stop(); } };
}

function chart(title) {
  const place = h("div", { className: "plot", "aria-hidden": "true" });
  const words = h("p", { className: "hint" });
  const figure = h("figure", { className: "chart" }, h("figcaption", {}, title), place, words);
  let plot, drawn, last;
  const observer = new ResizeObserver(() => plot?.setSize({ width: place.clientWidth, height }));
  observer.observe(place);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const anew = () => { drawn = undefined; if (last) draw(...last); };
  dark.addEventListener("change", anew);

  function draw(times, names, rows, sums) {
    last = [times, names, rows, sums];
    const told = sums.filter(([, n]) => n > 0).map(([name, n]) => `${name} ${n}`).join(", ");
    words.textContent = told ? `In this time: ${told}` : "Nothing in this time.";
    const key = names.join();
    if (drawn !== key) {
      plot?.destroy();
      fill(place);
      drawn = key;
      const style = getComputedStyle(place);
      const colour = (name) => style.getPropertyValue(name).trim();
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--edge"), width: 1 }, ticks: { stroke: colour("--edge"), width: 1 } };
      plot = new uPlot({
        width: place.clientWidth || 300, height, padding: [8, 44, 0, 0], cursor: { y: false }, legend: { live: false },
        scales: { y: { range: (_, __, most) => [0, Math.max(most * 1.1, 1)] } },
        axes: [{ ...axis, space: 110, values: (_, seconds) => seconds.map((at) => (times.at(-1) - times[0] > 600 ? minutes : clock).format(at * 1000)) }, { ...axis, size: 44 }],
        series: [{}, ...names.map((name, i) => ({ label: name, stroke: colour(`--line-${i % 5}`), width: 2, points: { show: false } }))],
      }, [times, ...rows], place);
    } else {
      plot.setData([times, ...rows]);
    }
  }

  return { figure, draw, stop() { observer.disconnect(); dark.removeEventListener("change", anew); plot?.destroy(); } };
}
