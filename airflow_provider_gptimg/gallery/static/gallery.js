// SPDX-License-Identifier: Apache-2.0
// The page: which run is looked at, and how it is kept fresh.

import * as airflow from "./airflow.js";
import { byId, counted, make, taskName } from "./dom.js";
import { Grid } from "./grid.js";
import { Picks } from "./picks.js";
import { Spending } from "./spending.js";
import { time } from "./time.js";
import { Viewer } from "./viewer.js";

const OLDER = "older runs";
const FINAL = ["success", "failed"];

// Airflow 3.1 writes a run's id as it is into a tab's address, and a plus in it would be read as a space; newer ones
// escape it, and none writes a space as a plus.
const asked = new URLSearchParams(location.search.replaceAll("+", "%2B"));
const number = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : -1);

const view = {
  dagId: asked.get("dag_id"),
  runId: asked.get("run_id"),
  // On the page of a run or a task instance there is nothing to choose; of the latter, only its images are shown.
  isFixed: asked.has("of"),
  only:
    asked.get("of") === "task" ? { task_id: asked.get("task_id"), map_index: number(asked.get("map_index")) } : null,
  state: "all",
  run: null,
  tiles: [],
};

const picks = new Picks();
const spending = new Spending();
const grid = new Grid((tile) => viewer.open(view.dagId, view.runId, tile), picks);
const viewer = new Viewer(
  () => view.tiles.filter((tile) => tile.state !== "pending" && (view.state === "all" || tile.state === view.state)),
  (tile) => grid.reasons.of(tile),
);

let timer;
let turn = 0;

async function load() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  const { dagId, runId } = view;
  try {
    const [run, found] = await Promise.all([airflow.run(dagId, runId), airflow.tiles(dagId, runId, view.only)]);
    if (mine !== turn) return; // another run was chosen meanwhile
    view.run = run;
    show(found);
    plan();
  } catch (error) {
    if (mine === turn) refuse(error);
  }
}

function show(found) {
  view.tiles = found.tiles;
  view.makesImages = found.makes_images;
  byId("grid").setAttribute("aria-busy", "false");
  picks.update(view.dagId, view.runId, view.tiles);
  grid.update(view.dagId, view.runId, view.tiles);
  grid.filter(view.state);
  count(found);
  spending.offer(view.dagId, view.runId, view.makesImages);
  notifyIfEmpty();
}

const isOver = () => FINAL.includes(view.run.state);

function count({ cut, credits, lacks_journal }) {
  const counts = { all: view.tiles.length, ready: 0, pending: 0, failed: 0 };
  for (const { state } of view.tiles) counts[state] += 1;
  for (const [state, n] of Object.entries(counts)) document.querySelector(`[data-count=${state}]`).textContent = n;
  const paid = [`${counted(credits.charged, "credit")} charged`, `${credits.refunded} refunded`];
  if (lacks_journal) paid.push("the journal in S3 cannot be read");
  if (credits.unknown) paid.push(`up to ${credits.unknown} more unknown`);
  const shown = [counted(counts.ready, "image"), paid.join(", "), ...(cut ? ["the run has more"] : [])];
  const said = view.tiles.length ? shown.join(" · ") : "";
  const summary = byId("summary");
  // Said aloud when it changes, so it must not be set without need.
  if (summary.textContent !== said) summary.textContent = said;
  byId("live").hidden = isOver() && !counts.pending;
}

/** Look again soon while there is something to wait for, and less often the more there is to fetch. */
function plan() {
  if (!view.makesImages) return;
  if (isOver() && !view.tiles.some(({ state }) => state === "pending")) return;
  // A run may be over while images are still pending, as when a wait failed: no hurry then.
  const seconds = isOver() ? 30 : 2 + view.tiles.length / 100;
  timer = setTimeout(() => (document.hidden ? onceVisible() : load()), seconds * 1000);
}

function onceVisible() {
  document.addEventListener("visibilitychange", load, { once: true });
}

function notify(title, text, again = null) {
  const notice = byId("notice");
  const isSaid = notice.hidden === !title && byId("notice-title").textContent === title;
  byId("retry").onclick = again;
  if (isSaid) return; // read aloud once, not at each refresh
  notice.hidden = !title;
  byId("notice-title").textContent = title;
  byId("notice-text").textContent = text;
  byId("retry").hidden = !again;
}

function notifyIfEmpty() {
  const inSight = view.tiles.filter(({ state }) => view.state === "all" || state === view.state).length;
  if (inSight) notify("", "");
  else if (!view.makesImages) {
    const what = view.only ? `The task ${view.only.task_id}` : "This run";
    notify("No images", `${what} makes none: only tasks of the gptimg provider do.`);
  } else if (view.tiles.length) notify(`No ${view.state} images`, "Choose another state to see the others.");
  else if (isOver()) notify("No images", `This ${view.only ? "task" : "run"} made none.`);
  else notify("No images yet", "They appear here as soon as a task asks for them.");
}

function refuse(error) {
  const status = error.status;
  if (status === undefined || status >= 500) {
    // For a moment perhaps: what is shown stays.
    const again = view.runId ? load : start;
    if (!view.tiles.length) {
      clear();
      const title = status ? `Airflow answers with status ${status}` : "Airflow does not answer";
      notify(title, "It is asked again every ten seconds.", again);
    }
    timer = setTimeout(again, 10_000);
    return;
  }
  clear();
  if (status === 401) notify("You are not logged in", "Log in to Airflow, then come back.", start);
  else if (status === 403) notify("No access", "Airflow does not let you see the images of this Dag.");
  else if (status === 404) notify("No such run", "It may have been deleted.");
  else notify("Something went wrong", `Airflow answered with status ${status}.`, start);
}

/** Show nothing: there is nothing to see, or nothing yet. */
function clear(isLoading = false) {
  clearTimeout(timer);
  turn += 1;
  [view.run, view.tiles] = [null, []];
  viewer.close();
  spending.offer(view.dagId, view.runId, isLoading);
  picks.update("", "", []);
  grid.update("", "", []);
  byId("grid").setAttribute("aria-busy", String(isLoading));
  byId("summary").textContent = isLoading ? "Loading …" : "";
  byId("live").hidden = true;
  for (const element of document.querySelectorAll("[data-count]")) element.textContent = "";
}

async function start() {
  notify("", "");
  clear(true);
  if (view.isFixed) return load();
  try {
    const [latest, listed] = await Promise.all([airflow.latestRuns(), airflow.dags()]);
    byId("find-field").hidden = listed.total_entries <= listed.dags.length;
    view.dagId ??= latest[0]?.dag_id ?? listed.dags[0]?.dag_id;
    offerDags(latest, listed.dags);
    if (!view.dagId) {
      clear();
      return notify("No Dags", "There is none that you may see.");
    }
    view.runId ??= latest.find(({ dag_id }) => dag_id === view.dagId)?.run_id;
    await chooseDag(view.dagId, view.runId);
  } catch (error) {
    refuse(error);
  }
}

function offerDags(latest, listed) {
  const recent = [...new Set([...latest.map(({ dag_id }) => dag_id), ...(view.dagId ? [view.dagId] : [])])];
  const others = listed.map(({ dag_id }) => dag_id).filter((id) => !recent.includes(id));
  const group = (label, ids) =>
    ids.length ? make("optgroup", { label }, ...ids.map((id) => make("option", { value: id }, id))) : null;
  const groups = [group("With Images Lately", recent), group("All Dags", others)];
  byId("dag").replaceChildren(...groups.filter(Boolean));
  if (view.dagId) byId("dag").value = view.dagId;
}

async function chooseDag(dagId, runId = null) {
  [view.dagId, view.runId] = [dagId, runId];
  clear(true);
  byId("run").replaceChildren();
  const offered = offerRuns();
  if (runId) return Promise.all([offered, load()]);
  const mine = turn;
  await offered;
  if (mine !== turn) return; // another Dag was chosen meanwhile
  if (view.runId) return load();
  clear();
  notify("No runs", "This Dag has not run yet.");
}

async function offerRuns() {
  const list = byId("run");
  const offset = list.querySelectorAll("option[data-listed]").length;
  const { dagId } = view;
  const { dag_runs: found, total_entries: total } = await airflow.runs(dagId, offset);
  if (dagId !== view.dagId) return;
  list.querySelector(`option[value="${OLDER}"]`)?.remove();
  const option = (id, label, listed) => make("option", { value: id, "data-listed": listed && "" }, label);
  for (const run of found) {
    const when = run.run_after ? time(run.run_after) : "";
    if (![...list.options].some(({ value }) => value === run.dag_run_id)) {
      list.append(option(run.dag_run_id, `${when} · ${run.state} · ${run.dag_run_id}`, true));
    }
  }
  if (offset + found.length < total) list.append(option(OLDER, "Older Runs …", false));
  view.runId ??= found[0]?.dag_run_id;
  if (view.runId && ![...list.options].some(({ value }) => value === view.runId)) {
    list.prepend(option(view.runId, view.runId, false));
  }
  if (view.runId) list.value = view.runId;
}

function listen() {
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("dag").addEventListener("change", ({ target }) => chooseDag(target.value).catch(refuse));
  byId("run").addEventListener("change", ({ target }) => {
    if (target.value === OLDER) return offerRuns().catch(refuse);
    view.runId = target.value;
    clear(true);
    return load();
  });
  byId("states").addEventListener("change", ({ target }) => {
    view.state = target.value;
    grid.filter(view.state);
    if (view.run) notifyIfEmpty();
  });
  let typing;
  byId("find").addEventListener("input", ({ target }) => {
    clearTimeout(typing);
    typing = setTimeout(() => airflow.dags(target.value).then(({ dags }) => offerDags([], dags), refuse), 300);
  });
}

if (view.isFixed) byId("title").textContent = view.only ? `Images of ${taskName(view.only)}` : "Images of This Run";
listen();
start();
