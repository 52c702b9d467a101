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

/** The tiles of a run, or of one task of it: {tiles, cut, credits, makes_images}; `cut` says that there are more. */
export function tiles(dagId, runId, only) {
  return get(at(HERE, ["dags", dagId, "tiles"], { run_id: runId, ...only }));
}

/** Credits of a run by task, or of a Dag by day: {by, rows, total}, or {missing: how to have them}. */
export function spending(dagId, runId = null) {
  return get(at(HERE, ["dags", dagId, "spending"], runId ? { run_id: runId } : {}));
}

const TRIES = 6;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

/** Load a picture, later where Airflow is busy. Resolves to what is wrong with it; null: it is there. */
export async function loadPicture(image, url) {
  for (let left = TRIES; ; left -= 1) {
    const loading = new Promise((resolve) => {
      image.onload = () => resolve(true);
      image.onerror = () => resolve(false);
    });
    image.src = url;
    if (await loading) return null;
    const { text, retryAfter } = await problem(url);
    if (!retryAfter || left <= 1) return text;
    await pause(retryAfter * (0.5 + Math.random()));
  }
}

/** What is wrong with a picture, as its address says, which an image element does not. */
async function problem(url) {
  const text = "The image could not be loaded";
  const stop = new AbortController();
  try {
    const answer = await fetch(url, { credentials: "same-origin", signal: stop.signal });
    if (answer.status === 401) return { text: "You are not logged in" };
    if (answer.status === 403) return { text: "Airflow does not let you see it" };
    if (answer.ok) return { text, retryAfter: 1 }; // it is there by now
    const { detail } = await answer.json();
    return { text: typeof detail === "string" ? detail : text, retryAfter: Number(answer.headers.get("retry-after")) };
  } catch {
    return { text };
  } finally {
    stop.abort();
  }
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

export const MOST_IN_ZIP = 40;

export function zipUrl(dagId, runId, tiles) {
  const url = at(HERE, ["dags", dagId, "zip"], { run_id: runId });
  for (const { source, image_task, index } of tiles) {
    url.searchParams.append("pick", [source.task_id, source.map_index, image_task, index].join("/"));
  }
  return url.href;
}

/** Airflow's page of a task instance, which shows its log; of an attempt if one is named. */
export function taskUrl(dagId, runId, { task_id, map_index }, attempt) {
  const parts = ["dags", dagId, "runs", runId, "tasks", task_id, ...(map_index >= 0 ? ["mapped", String(map_index)] : [])];
  return at(new URL("../", HERE), parts, attempt ? { try_number: attempt } : {}).href;
}

/** Follow a link of Airflow's pages within the page that shows this frame, which may not be left otherwise. */
export function follow(event) {
  if (parent === window || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const { href } = event.currentTarget;
  try {
    parent.history.pushState({}, "", href);
    parent.dispatchEvent(new PopStateEvent("popstate", { state: {} }));
  } catch {
    location.assign(href); // shown by another site
  }
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
