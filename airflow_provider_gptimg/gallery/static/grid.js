// SPDX-License-Identifier: Apache-2.0
// The grid of tiles: kept in step with what a run has, touching only what changed.

import { failureReason, pictureUrl } from "./airflow.js";
import { byId, bytes, copy, counted, icon, make } from "./dom.js";

const WAITING = {
  null: "Not started yet",
  scheduled: "Queued",
  queued: "Queued",
  running: "In progress",
  deferred: "Being generated",
  success: "Being generated",
  up_for_retry: "To be tried again",
  up_for_reschedule: "Being generated",
  restarting: "Restarting",
};

const LOGS_AT_ONCE = 2;

export const waitingText = (tile) => WAITING[tile.airflow_state] ?? tile.airflow_state;
export const taskName = ({ task_id, map_index }) => (map_index >= 0 ? `${task_id} [${map_index}]` : task_id);

/** What a screen reader calls a tile, among many. */
function spoken(tile) {
  const name = tile.prompt ?? tile.image_task ?? taskName(tile);
  return `image ${tile.index + 1}: ${name.length > 80 ? `${name.slice(0, 80)}…` : name}`;
}

export class Grid {
  constructor(open) {
    this.list = byId("grid");
    this.open = open;
    this.shown = new Map(); // a tile's id -> {element, tile, said}
    this.reasons = new Map(); // a failed attempt -> promise of its reason
    this.logsUnderWay = 0;
    this.logsWanted = [];
    this.seen = new IntersectionObserver((entries) => this.#onSeen(entries), { rootMargin: "200px" });
    this.list.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Show these tiles of this run. */
  update(dagId, runId, tiles) {
    if (this.dagId !== dagId || this.runId !== runId) {
      this.seen.disconnect();
      this.shown.clear();
      this.reasons.clear();
      this.list.replaceChildren();
      [this.dagId, this.runId] = [dagId, runId];
    }
    const gone = new Set(this.shown.keys());
    let place = this.list.firstElementChild;
    for (const tile of tiles) {
      gone.delete(tile.id);
      const said = JSON.stringify(tile);
      const known = this.shown.get(tile.id);
      let element = known?.element;
      if (known?.said !== said) {
        const held = element?.contains(document.activeElement);
        const fresh = this.#element(tile);
        if (place === element) place = fresh;
        if (element) {
          this.seen.unobserve(element);
          element.replaceWith(fresh);
        }
        element = fresh;
        this.shown.set(tile.id, { element, tile, said });
        if (held) element.querySelector("button")?.focus();
      }
      if (element === place) place = place.nextElementSibling;
      else this.list.insertBefore(element, place);
    }
    for (const id of gone) {
      this.shown.get(id).element.remove();
      this.shown.delete(id);
    }
  }

  /** Leave only tiles of one state in sight. */
  filter(state) {
    for (const { element, tile } of this.shown.values()) element.hidden = state !== "all" && tile.state !== state;
  }

  /** Why a tile has no image, or none in S3; each attempt's log is read once, two at a time. */
  reason(tile) {
    const { failure } = tile;
    if (failure.reason) return Promise.resolve(failure.reason);
    if (failure.upstream) return Promise.resolve("A task before it failed.");
    const key = `${failure.task_id}:${failure.map_index}:${failure.try_number}`;
    if (!this.reasons.has(key)) {
      const [dagId, runId] = [this.dagId, this.runId];
      const reading = new Promise((resolve) => this.logsWanted.push(resolve))
        .then(() => failureReason(dagId, runId, failure))
        .catch(() => null)
        .finally(() => {
          this.logsUnderWay -= 1;
          this.#readLogs();
        });
      this.reasons.set(key, reading);
      this.#readLogs();
    }
    const by = taskName(failure) === taskName(tile) ? "" : `${taskName(failure)}: `;
    return this.reasons.get(key).then((reason) => by + (reason ?? "It failed, and its log could not be read"));
  }

  #readLogs() {
    while (this.logsUnderWay < LOGS_AT_ONCE && this.logsWanted.length) {
      this.logsUnderWay += 1;
      this.logsWanted.shift()();
    }
  }

  #element(tile) {
    const reason = tile.failure ? make("p", { class: "reason" }) : null;
    const facts = make("p", { class: "facts" }, ...this.#facts(tile));
    const prompt = tile.prompt
      ? make("p", { class: "prompt", title: tile.prompt }, tile.prompt)
      : make("p", { class: "prompt none" }, tile.image_task ?? "No prompt");
    const element = make(
      "li",
      { class: `tile ${tile.state}`, "data-id": tile.id },
      this.#shot(tile, facts),
      make("div", { class: "text" }, prompt, facts, reason, this.#actions(tile)),
    );
    if (tile.failure) this.seen.observe(element);
    return element;
  }

  #shot(tile, facts) {
    const open = () => this.open(tile);
    if (tile.state === "pending") {
      return make("div", { class: "shot" }, make("div", { class: "state" }, icon("pending"), waitingText(tile)));
    }
    if (tile.state === "failed") {
      const state = make("span", { class: "state" }, icon("failed"), "Failed");
      return make("button", { class: "shot", type: "button", "aria-label": `Failed: ${spoken(tile)}`, click: open }, state);
    }
    const hint = make("span", { class: "hint" }, "The image could not be loaded");
    const image = make("img", { loading: "lazy", decoding: "async", alt: "" });
    const shot = make(
      "button",
      { class: "shot", type: "button", "aria-label": `Open ${spoken(tile)}`, click: open },
      image,
      hint,
    );
    image.addEventListener("load", () => {
      shot.classList.add("loaded");
      const [loaded] = performance.getEntriesByName(image.src).slice(-1);
      tile.pixels = `${image.naturalWidth} × ${image.naturalHeight}`;
      tile.size ??= loaded?.decodedBodySize || null;
      facts.replaceChildren(...this.#facts(tile));
    });
    image.addEventListener("error", () => {
      shot.classList.add("broken");
      shot.ariaLabel = `Could not be loaded: ${spoken(tile)}`;
    });
    image.src = pictureUrl(this.dagId, this.runId, tile);
    return shot;
  }

  #facts(tile) {
    if (tile.state !== "ready") return [taskName(tile)];
    const said = [tile.pixels, tile.size ? bytes(tile.size) : null, counted(tile.credits, "credit")];
    return [said.filter(Boolean).join(" · ")];
  }

  #actions(tile) {
    if (tile.state !== "ready") return null;
    const where = tile.uri ?? "at the vendor, not in S3";
    return make(
      "div",
      { class: "actions" },
      make("span", { class: "where", title: where }, where),
      tile.uri
        ? make(
            "button",
            { class: "icon-button", type: "button", "aria-label": `Copy S3 URI of ${spoken(tile)}`, title: "Copy S3 URI", click: () => copy(tile.uri) },
            icon("copy"),
          )
        : null,
      make(
        "a",
        { class: "icon-button", href: pictureUrl(this.dagId, this.runId, tile, true), download: "", "aria-label": `Download ${spoken(tile)}`, title: "Download" },
        icon("download"),
      ),
    );
  }

  #onSeen(entries) {
    for (const { isIntersecting, target } of entries) {
      const known = this.shown.get(target.dataset.id);
      if (!isIntersecting || known?.element !== target) continue;
      this.seen.unobserve(target);
      this.reason(known.tile).then((text) => {
        const line = target.querySelector(".reason");
        line.textContent = text;
        line.title = text;
      });
    }
  }

  /** Arrow keys go from image to image, as they lie. */
  #onKey(event) {
    if (!event.target.classList?.contains("shot")) return;
    const shots = [...this.list.querySelectorAll(".tile:not([hidden]) > button.shot")];
    const at = shots.indexOf(event.target);
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: shots.length - 1 };
    const shot = shots[to[event.key]];
    if (!shot) return;
    event.preventDefault();
    shot.focus();
  }
}
