// The word that says how a job or an operation is, with its colour.

import { h } from "./dom.js";
import { word } from "./format.js";

const kinds = { PENDING: "idle", PROCESSING: "busy", RUNNING: "busy", SUCCEEDED: "good", COMPLETED: "good", PARTIAL: "warn", FAILED: "bad", CANCELLED: "idle", COMPLETED_WEBHOOK_FAILED: "warn", EXPIRED: "idle", GONE: "idle" };

export const badge = (state) => h("span", { className: `badge ${kinds[state] ?? "idle"}`, dataset: { state } }, word(state).replaceAll("_", " "));
