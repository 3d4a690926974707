// All results of a job as one file. The browser puts them together; they come straight from
// the storage server, which must allow our origin to read them (CORS).

import { downloadZip } from "/vendor/client-zip.js";
import { Fault } from "./server.js";

export async function downloadAll(job, say) {
  const base = (job.source.name ?? "").replace(/\.[^.]*$/, "") || "image";
  const made = job.operations.filter((name) => job.result_urls[name]);
  async function* files() {
    for (const [i, name] of made.entries()) {
      say(`Fetching ${name}, ${i + 1} of ${made.length}…`);
      let answer;
      try {
        answer = await fetch(job.result_urls[name], { referrerPolicy: "no-referrer" });
      } catch {
        throw new Fault("The storage server cannot be reached, or does not let this page read from it (CORS). Download the results one by one.", 0);
      }
      if (!answer.ok) throw new Fault(`The result of ${name} is not there any more (${answer.status}).`, answer.status);
      // As the server names single downloads.
      yield { name: `pixtools_${name}_${base}.${job.operation_results[name].artifact.format}`, lastModified: new Date(job.updated_at), input: answer };
    }
  }
  save(await downloadZip(files()).blob(), `pixtools_${base}.zip`);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the download has begun long before
}
