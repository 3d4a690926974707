// One submission on its way: progress, and trying again while the world is in the way.

import { Fault, unreachable, faultOf, reached } from "./server.js";

// giveUpAfter is for how long we try, in milliseconds; the pauses grow from one second up to longestPause.
const giveUpAfter = 120_000;
const longestPause = 10;

// send submits a picture and returns its job's id and the position of its event. Each repeat
// has the same key, so that it is one job however often the server heard of it.
export async function send(file, operations, parameters, key, { progress, pausing }) {
  const end = performance.now() + giveUpAfter;
  for (let pause = 1; ; pause = Math.min(pause * 2, longestPause)) {
    try {
      return await sendOnce(file, operations, parameters, key, progress);
    } catch (fault) {
      const seconds = fault.pause ?? pause;
      if (!fault.passing || performance.now() + seconds * 1000 > end) throw fault;
      pausing(seconds, fault);
      await new Promise((done) => setTimeout(done, seconds * 1000));
    }
  }
}

// sendOnce uses XMLHttpRequest, since fetch tells nothing of an upload's progress.
function sendOnce(file, operations, parameters, key, progress) {
  const form = new FormData();
  form.append("idempotency_key", key);
  form.append("operations", JSON.stringify(operations));
  if (Object.keys(parameters).length > 0) form.append("operation_params", JSON.stringify(parameters));
  form.append("file", file);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/process");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => { if (event.lengthComputable) progress(event.loaded / event.total); });
    request.addEventListener("error", async () => {
      if (!(await readable(file))) { reject(new Fault("The file cannot be read any more. Choose it again.", 422)); return; }
      reached(false);
      reject(unreachable());
    });
    request.addEventListener("load", () => {
      reached(true);
      if (request.status === 401) window.dispatchEvent(new CustomEvent("signed-out"));
      if (request.status === 202) resolve({ job: request.response.job_id, position: request.getResponseHeader("Pixtools-Position") ?? "" });
      else reject(faultOf(request.status, request.response, (name) => request.getResponseHeader(name)));
    });
    request.send(form);
  });
}

// readable: a file that was changed or removed since it was chosen fails like a network.
const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);
