// The first page: one picture, its operations, and the job until it ends.

const $ = (id) => document.getElementById(id);
const form = $("form");
const ended = new Set(["COMPLETED", "FAILED", "COMPLETED_WEBHOOK_FAILED"]);
// How long one question waits for the job's end, in seconds; results show in between.
const patienceOfOne = 0.5;
// The pause after a question that was not answered, in milliseconds.
const pauseAfterFault = 1000;
// How long a network fault may last before we give up, in milliseconds.
const patience = 60_000;

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// upload posts the form; XMLHttpRequest, since fetch tells nothing of an upload's progress.
function upload(data) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/api/process");
    request.responseType = "json";
    request.upload.onprogress = (e) => { if (e.lengthComputable) $("upload").value = e.loaded / e.total; };
    request.onerror = () => reject(new Error("The server cannot be reached. Try again in a moment."));
    request.onload = () => {
      if (request.status === 202) resolve({ job: request.response.job_id, position: request.getResponseHeader("Pixtools-Position") });
      else reject(new Error(request.response?.detail ?? `The server answered ${request.status}.`));
    };
    request.send(data);
  });
}

function bytes(n) {
  return n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

function show(job) {
  $("job").hidden = false;
  $("job-id").textContent = job.job_id;
  $("status").textContent = job.outcome ?? job.status;
  $("results").replaceChildren(...job.operations.map((op) => {
    const item = document.createElement("li");
    item.dataset.operation = op;
    const result = job.operation_results[op];
    const name = document.createElement("span");
    name.textContent = `${op}: ${result.state.toLowerCase()}`;
    item.append(name);
    if (job.result_urls[op]) {
      const link = document.createElement("a");
      link.href = job.result_urls[op];
      link.textContent = `Download (${bytes(result.artifact.bytes)})`;
      item.append(link);
    } else if (result.state === "RUNNING" && result.progress > 0) {
      const bar = document.createElement("progress");
      bar.value = result.progress;
      bar.ariaLabel = `${op}: ${Math.round(result.progress * 100)} percent done`;
      item.append(bar);
    } else if (result.error) {
      name.textContent += ` — ${result.error.message}`;
    }
    return item;
  }));
}

async function follow(id, position) {
  let lastGood = Date.now();
  let query = position ? `&after=${encodeURIComponent(position)}` : "";
  for (;;) {
    try {
      const answer = await fetch(`/api/jobs/${id}?wait=${patienceOfOne}${query}`);
      if (answer.ok) {
        lastGood = Date.now();
        query = "";
        const job = await answer.json();
        show(job);
        if (ended.has(job.status)) return job;
        continue;
      } else if (answer.status !== 503) {
        throw new Error((await answer.json()).detail);
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
    if (Date.now() - lastGood > patience) throw new Error("The server does not answer. The job goes on; reload later.");
    await pause(pauseAfterFault);
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = $("file").files[0];
  const operations = [...form.querySelectorAll("input[name=op]:checked")].map((box) => box.value);
  if (!file) return say("Choose a picture first.", true);
  if (operations.length === 0) return say("Choose at least one operation.", true);
  const data = new FormData();
  data.append("file", file);
  data.append("operations", JSON.stringify(operations));
  data.append("idempotency_key", crypto.randomUUID?.() ?? String(Math.random()) + Date.now());
  const button = form.querySelector("button");
  button.disabled = true;
  $("upload").hidden = false;
  $("upload").value = 0;
  say("Uploading…");
  try {
    const accepted = await upload(data);
    say("Working…");
    const job = await follow(accepted.job, accepted.position);
    say(job.error_message ?? "Done.", job.status === "FAILED");
  } catch (error) {
    say(error.message, true);
  } finally {
    button.disabled = false;
    $("upload").hidden = true;
  }
});

$("file").addEventListener("change", () => {
  $("chosen").textContent = $("file").files[0]?.name ?? "Drop a picture here, or choose one";
});
for (const type of ["dragover", "dragenter"]) {
  $("drop").addEventListener(type, (e) => { e.preventDefault(); $("drop").classList.add("over"); });
}
for (const type of ["dragleave", "drop"]) {
  $("drop").addEventListener(type, () => $("drop").classList.remove("over"));
}
$("drop").addEventListener("drop", (e) => {
  e.preventDefault();
  if (e.dataTransfer.files.length === 0) return;
  $("file").files = e.dataTransfer.files;
  $("file").dispatchEvent(new Event("change"));
});
