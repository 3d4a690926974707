// The view for new jobs: pictures, operations, and each picture on its way to the server.

import { h, fill, announce } from "./dom.js";
import { bytes, sides } from "./format.js";
import { settings } from "./server.js";
import { send } from "./sending.js";
import { follow } from "./stream.js";
import { badge } from "./badge.js";
import * as checks from "./checks.js";
import * as local from "./local.js";

// atOnce is how many uploads run at the same time: a browser opens six connections to a server.
const atOnce = 3;

const purposes = { jpg: "JPEG: small, opens everywhere", png: "PNG: every pixel kept", webp: "WebP: smaller than JPEG", avif: "AVIF: the smallest, takes longer", denoise: "Takes sensor noise out of photographs" };

export async function upload(root) {
  const server = await settings();
  // One entry per picture: file, format, width, height, fault, row, and once it is sent attempt and job.
  let pictures = [];
  const stops = new Set();

  const list = h("ul", { className: "pictures", "aria-label": "Pictures" });
  const operations = server.operations.map(operationCard);
  const message = h("p", { id: "message", className: "message", role: "status" });
  const start = h("button", { type: "submit", className: "big" }, "Start");
  const input = h("input", { id: "file", type: "file", multiple: true, accept: server.accepted_types.join(","), className: "hidden-text", onchange: () => { add(input.files); input.value = ""; } });
  const drop = h("label", { id: "drop", className: "drop", htmlFor: "file" }, input,
    h("span", { className: "drop-title" }, "Drop pictures here, paste them, or ", h("span", { className: "link" }, "choose files")),
    h("span", { className: "hint" }, `JPEG, PNG, WebP or AVIF, up to ${checks.limit(checks.largest(server))} each`));
  const form = h("form", { id: "form", noValidate: true, onsubmit: (event) => { event.preventDefault(); submit(); } },
    drop, list,
    h("fieldset", { className: "operations" }, h("legend", {}, "Make of it"), operations.map((one) => one.card)),
    h("div", { className: "submit" }, start, message));
  fill(root, h("h1", {}, "New job"), form);

  function operationCard(operation) {
    const box = h("input", { type: "checkbox", name: "op", value: operation.name, checked: operation.name === "webp", onchange: () => refresh(), "aria-describedby": `about-${operation.name}` });
    const about = h("span", { id: `about-${operation.name}`, className: "hint" }, purposes[operation.name] ?? "");
    const fields = (operation.parameters ?? []).map((parameter) => parameterField(operation, parameter));
    const more = fields.length > 0 && h("details", { className: "parameters" }, h("summary", { "aria-label": `Settings of ${operation.name}` }, "Settings"), fields.map((field) => field.row));
    const card = h("div", { className: "operation" }, h("label", { className: "operation-name" }, box, h("span", {}, operation.name)), about, more);
    return { operation, box, about, card, fields };
  }

  function parameterField(operation, parameter) {
    const id = `${operation.name}-${parameter.name}`;
    const field = parameter.boolean ? h("input", { type: "checkbox", id, "aria-describedby": `${id}-help` })
      : h("input", { type: "number", id, min: parameter.min, max: parameter.max, step: 1, placeholder: "default", "aria-describedby": `${id}-help` });
    const row = h("div", { className: "parameter" }, h("label", { htmlFor: id }, parameter.name), field, h("span", { id: `${id}-help`, className: "hint" }, parameter.help));
    return { parameter, field, row };
  }

  async function add(files) {
    const fresh = await Promise.all([...files].map(describe));
    pictures = [...pictures.filter((picture) => !picture.job), ...fresh];
    refresh();
    say(fresh.length === 1 ? `${fresh[0].file.name} added.` : `${fresh.length} pictures added.`);
  }

  // describe finds out what can be known of a picture here.
  async function describe(file) {
    const picture = { file, format: await checks.formatOf(file), width: 0, height: 0 };
    picture.preview = URL.createObjectURL(file);
    const image = h("img", { src: picture.preview, alt: "", className: "thumb" });
    picture.image = await image.decode().then(() => true, () => false) ? image : h("span", { className: "thumb none", "aria-hidden": "true" });
    picture.width = image.naturalWidth;
    picture.height = image.naturalHeight;
    picture.fault = checks.ofFile(file, picture, server);
    picture.state = h("div", { className: "picture-state" });
    picture.remove = h("button", { type: "button", className: "quiet small", "aria-label": `Remove ${file.name}`, onclick: () => takeOut(picture) }, "Remove");
    picture.row = h("li", { className: "picture", dataset: { name: file.name } }, picture.image,
      h("div", { className: "picture-text" }, h("span", { className: "name" }, file.name),
        h("span", { className: "hint" }, [picture.format || file.type, picture.width && sides(picture), bytes(file.size)].filter(Boolean).join(" · "))),
      picture.state, picture.remove);
    return picture;
  }

  function takeOut(picture) {
    URL.revokeObjectURL(picture.preview);
    pictures = pictures.filter((other) => other !== picture);
    refresh();
    say(`${picture.file.name} removed.`);
    input.focus();
  }

  const waiting = () => pictures.filter((picture) => !picture.job && !picture.fault);

  // refresh shows what is possible with the pictures that are there.
  function refresh() {
    fill(list, pictures.map((picture) => picture.row));
    const formats = [...new Set(waiting().map((picture) => picture.format))];
    for (const { operation, box, about, card } of operations) {
      const reasons = formats.map((format) => checks.ofOperation(operation, format)).filter(Boolean);
      const impossible = formats.length > 0 && reasons.length === formats.length;
      box.disabled = impossible;
      card.classList.toggle("off", impossible);
      card.classList.toggle("chosen", box.checked && !impossible);
      about.textContent = impossible ? reasons[0] : reasons.length > 0 ? `Not for all of them: ${reasons[0]}` : purposes[operation.name] ?? "";
    }
    for (const picture of pictures) {
      if (picture.fault) fill(picture.state, h("span", { className: "error" }, picture.fault));
      else if (!picture.job && !picture.sending) fill(picture.state, picture.failed && h("span", { className: "error" }, picture.failed));
    }
    start.textContent = waiting().length > 1 ? `Start ${waiting().length} jobs` : "Start";
  }

  // chosen are the operations to ask for of a picture, and their parameters.
  function chosen(picture) {
    const wanted = operations.filter(({ operation, box }) => box.checked && !checks.ofOperation(operation, picture.format));
    const parameters = {};
    for (const { operation, fields } of wanted) {
      for (const { parameter, field } of fields) {
        if (parameter.boolean ? field.checked : field.value.trim() !== "" || !field.validity.valid) {
          (parameters[operation.name] ??= {})[parameter.name] = parameter.boolean ? true : Number(field.value);
        }
      }
    }
    return { names: wanted.map(({ operation }) => operation.name), parameters };
  }

  // parameterFault is the first thing that is wrong with a number, with its field.
  function parameterFault() {
    for (const { operation, box, fields } of operations) {
      for (const { parameter, field } of fields) {
        if (!box.checked || box.disabled || parameter.boolean || (field.value.trim() === "" && field.validity.valid)) continue;
        const fault = checks.ofParameter(operation, parameter, field.value);
        field.toggleAttribute("aria-invalid", fault !== "");
        if (fault) return { fault, field };
      }
    }
  }

  function say(text, isError = false) {
    message.textContent = text;
    message.classList.toggle("error", isError);
  }

  async function submit() {
    const now = waiting();
    if (pictures.length === 0) { say("Choose a picture first.", true); input.focus(); return; }
    if (now.length === 0) { say("None of these pictures can be sent.", true); return; }
    const wrong = parameterFault();
    if (wrong) {
      wrong.field.closest("details").open = true;
      wrong.field.focus();
      say(wrong.fault, true);
      return;
    }
    const without = now.find((picture) => chosen(picture).names.length === 0);
    if (without) { say(now.length === 1 ? checks.noOperation : `${without.file.name}: ${checks.noOperation}`, true); return; }
    start.disabled = true;
    say("Uploading…");
    const queue = [...now];
    await Promise.all(Array.from({ length: atOnce }, async () => { while (queue.length > 0) await sendOne(queue.shift()); }));
    start.disabled = false;
    const failed = now.filter((picture) => !picture.job);
    say(failed.length === 0 ? "Accepted." : now.length === 1 ? failed[0].failed : `${failed.length} of ${now.length} were not accepted.`, failed.length > 0);
    if (now.length === 1 && pictures.length === 1 && now[0].job && root.isConnected) location.hash = `#/jobs/${now[0].job}`;
    else refresh();
  }

  async function sendOne(picture) {
    const { names, parameters } = chosen(picture);
    const bar = h("progress", { max: 1, value: 0, "aria-label": `Upload of ${picture.file.name}` });
    const share = h("span", { className: "hint" }, "0 %");
    picture.sending = true;
    picture.remove.hidden = true;
    fill(picture.state, bar, share);
    try {
      picture.attempt = attemptFor(picture, names, parameters);
      const accepted = await send(picture.file, names, parameters, picture.attempt.key, {
        progress: (part) => { bar.value = part; share.textContent = part < 1 ? `${Math.floor(part * 100)} %` : "Storing…"; },
        pausing: (seconds, fault) => { share.textContent = `${fault.message} Trying again in ${Math.ceil(seconds)} s.`; },
      });
      picture.job = accepted.job;
      local.add({ id: accepted.job, name: picture.file.name, bytes: picture.file.size, operations: names, at: new Date().toISOString(), position: accepted.position, state: "PENDING" });
      watch(picture, accepted.position);
    } catch (fault) {
      picture.failed = fault.message;
      if (!fault.passing) picture.attempt = undefined;
      picture.remove.hidden = false;
      announce(`${picture.file.name}: ${fault.message}`);
    }
    picture.sending = false;
    refresh();
  }

  // An attempt keeps its key for as long as it may have been accepted without our hearing
  // of it: until it is answered, and while it is the same wish.
  function attemptFor(picture, names, parameters) {
    const wish = JSON.stringify([names, parameters]);
    if (picture.attempt?.wish === wish) return picture.attempt;
    return { wish, key: newKey() };
  }

  function watch(picture, position) {
    const link = h("a", { href: `#/jobs/${picture.job}` }, "Open");
    const shown = h("span", {});
    fill(picture.state, shown, link);
    const stop = follow(picture.job, { live: false, after: position,
      job: (job) => { fill(shown, badge(job.outcome ?? job.status)); local.hear(job.job_id, local.newsOf(job)); },
      fault: (fault) => { shown.textContent = fault.message; } });
    stops.add(stop);
  }

  const onPaste = (event) => { if (event.clipboardData.files.length > 0) { event.preventDefault(); add(event.clipboardData.files); } };
  const onDrag = (event) => { if (event.dataTransfer.types.includes("Files")) { event.preventDefault(); drop.classList.add("over"); } };
  const onLeave = (event) => { if (!event.relatedTarget) drop.classList.remove("over"); };
  const onDrop = (event) => { drop.classList.remove("over"); if (event.dataTransfer.files.length > 0) { event.preventDefault(); add(event.dataTransfer.files); } };
  const listeners = { paste: onPaste, dragover: onDrag, dragenter: onDrag, dragleave: onLeave, drop: onDrop };
  for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
  refresh();
  return {
    title: "New job",
    stop() {
      for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener);
      for (const stop of stops) stop();
      for (const picture of pictures) URL.revokeObjectURL(picture.preview);
    },
  };
}

// newKey: randomUUID is there on https and on this machine only.
function newKey() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
}
