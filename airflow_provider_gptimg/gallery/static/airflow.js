// SPDX-License-Identifier: Apache-2.0
// What the gallery asks of Airflow, with the session of whoever looks at it: Airflow decides what is answered.

const HERE = new URL(".", document.baseURI);
const API = new URL("../api/v2/", HERE);

export class Refusal extends Error {
  constructor(status) {
    super(`HTTP ${status}`);
    this.status = status;
  }
}

async function get(url) {
  const answer = await fetch(url, { credentials: "same-origin", headers: { accept: "application/json" } });
  if (!answer.ok) throw new Refusal(answer.status);
  return answer.json();
}

function at(base, parts, query = {}) {
  // A browser takes such a part as a step to another address, however it is written.
  if (parts.some((part) => part === "." || part === "..")) throw new Refusal(404);
  const url = new URL(parts.map(encodeURIComponent).join("/"), base);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
}

/** The latest runs that made images, newest first: [{dag_id, run_id}]. */
export async function latestRuns() {
  const query = { operator_name_pattern: "gptimg", order_by: "-start_date", limit: 100 };
  const { task_instances: found } = await get(at(API, ["dags", "~", "dagRuns", "~", "taskInstances"], query));
  // An Airflow that does not know the filter answers with all operators.
  return found
    .filter((ti) => /gptimg/i.test(`${ti.operator} ${ti.operator_name}`))
    .map((ti) => ({ dag_id: ti.dag_id, run_id: ti.dag_run_id }));
}

/** DAGs by a part of their id: {dags: [{dag_id, dag_display_name}], total_entries}. */
export function dags(part = "") {
  const query = { limit: 100, order_by: "dag_id", ...(part && { dag_id_pattern: `%${part}%` }) };
  return get(at(API, ["dags"], query));
}

/** A page of a DAG's runs, newest first: {dag_runs, total_entries}. */
export function runs(dagId, offset) {
  return get(at(API, ["dags", dagId, "dagRuns"], { limit: 50, offset, order_by: "-run_after" }));
}

export function run(dagId, runId) {
  return get(at(API, ["dags", dagId, "dagRuns", runId]));
}

/** The tiles of a run: {tiles, cut}, where `cut` says that there are more. */
export function tiles(dagId, runId) {
  return get(at(HERE, ["dags", dagId, "tiles"], { run_id: runId }));
}

/** Why a picture cannot be had, as its address says. */
export async function pictureProblem(url) {
  const answer = await fetch(url, { credentials: "same-origin" });
  if (answer.status === 401) return "You are not logged in";
  if (answer.status === 403) return "Airflow does not let you see it";
  if (answer.ok) return null;
  const { detail } = await answer.json();
  return typeof detail === "string" ? detail : null;
}

export function pictureUrl(dagId, runId, tile, download = false) {
  const query = {
    run_id: runId,
    task_id: tile.source.task_id,
    map_index: tile.source.map_index,
    image_task: tile.image_task,
    index: tile.index,
    ...(download && { download: true }),
  };
  return at(HERE, ["dags", dagId, "picture"], query).href;
}

/** Why a task instance failed, as its log says; null where the log does not. */
export async function failureReason(dagId, runId, { task_id, map_index, try_number }) {
  const parts = ["dags", dagId, "dagRuns", runId, "taskInstances", task_id, "logs", String(try_number)];
  const { content } = await get(at(API, parts, { map_index, full_content: true }));
  if (!Array.isArray(content)) return null;
  const last = (wanted) => content.filter(wanted).at(-1);
  const raised = last((entry) => entry.error_detail?.length)?.error_detail[0];
  return raised?.exc_value || last((entry) => ["error", "critical"].includes(entry.level))?.event || null;
}
