// One submission on its way: progress, and trying again while the world is in the way.

import { Fault, unreachable, faultOf, reached, ask, settings } from "./server.js";

// giveUpAfter is for how long we try, in milliseconds; the pauses grow from one second up to longestPause.
const giveUpAfter = 120_000;
const longestPause = 10;

// send submits a picture and returns its job's id and the position of its event. Each repeat
// has the same key, so that it is one job however often the server heard of it.
//
// A file that is larger than the API takes is first stored in the object storage, and the API told of it.
export async function send(file, operations, parameters, key, { progress, pausing }) {
  const end = performance.now() + giveUpAfter;
  const { max_upload_bytes: most } = await settings();
  let stored = "";
  for (let pause = 1; ; pause = Math.min(pause * 2, longestPause)) {
    try {
      if (file.size > most && !stored) stored = await store(file, progress);
      return await sendOnce(file, stored, operations, parameters, key, progress);
    } catch (fault) {
      const seconds = fault.pause ?? pause;
      if (!fault.passing || performance.now() + seconds * 1000 > end) throw fault;
      pausing(seconds, fault);
      await new Promise((done) => setTimeout(done, seconds * 1000));
    }
  }
}

// store puts a file into the object storage and returns what the API knows it by.
async function store(file, progress) {
  const wish = { content_type: file.type, bytes: file.size, file_name: file.name };
  const { data: signed } = await ask("/api/uploads", { method: "POST", body: wish });
  const { status } = await transfer(signed.method, signed.url, file, file, progress, (request) => {
    for (const [name, value] of Object.entries(signed.headers)) request.setRequestHeader(name, value);
  });
  if (status !== 200) throw new Fault(`The object storage answered ${status} to the file.`, status);
  return signed.upload;
}

async function sendOnce(file, stored, operations, parameters, key, progress) {
  const form = new FormData();
  form.append("idempotency_key", key);
  form.append("operations", JSON.stringify(operations));
  if (Object.keys(parameters).length > 0) form.append("operation_params", JSON.stringify(parameters));
  if (stored) form.append("upload", stored);
  else form.append("file", file);
  const answer = await transfer("POST", "/api/process", form, file, stored ? () => {} : progress, (request) => { request.responseType = "json"; });
  reached(true);
  if (answer.status === 202) return { job: answer.response.job_id, position: answer.getResponseHeader("Pixtools-Position") ?? "" };
  throw faultOf(answer.status, answer.response, (name) => answer.getResponseHeader(name));
}

// transfer sends a body that has the file in it, by XMLHttpRequest, since fetch tells nothing of an upload's progress.
function transfer(method, url, body, file, progress, prepare) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    prepare(request);
    request.upload.addEventListener("progress", (event) => { if (event.lengthComputable) progress(event.loaded / event.total); });
    request.addEventListener("error", async () => {
      if (!(await readable(file))) { reject(new Fault("The file cannot be read any more. Choose it again.", 422)); return; }
      if (url.startsWith("/")) reached(false);
      reject(unreachable());
    });
    request.addEventListener("load", () => {
      if (request.status === 401 && url.startsWith("/")) window.dispatchEvent(new CustomEvent("signed-out"));
      resolve(request);
    });
    request.send(body);
  });
}

// readable: a file that was changed or removed since it was chosen fails like a network.
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);
