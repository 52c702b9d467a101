// SPDX-License-Identifier: Apache-2.0
// One tile: a picture in its own shape, what is known of it, and what can be done with it.

import { follow, loadPicture, pictureUrl, taskUrl } from "./airflow.js";
import { bytes, copy, counted, icon, make, pixels, taskName } from "./dom.js";

const WAITING = {
  null: "Not started yet",
  scheduled: "Queued",
  queued: "Queued",
  running: "In progress",
  deferred: "Being generated",
  success: "Being generated",
  up_for_retry: "Up for retry",
  up_for_reschedule: "Being generated",
  restarting: "Restarting",
};

const [NARROWEST, WIDEST] = [0.5, 3];

export const waitingText = (tile) => tile.waiting ?? WAITING[tile.airflow_state] ?? tile.airflow_state;

/** What a screen reader calls a tile, among many. */
export function spoken(tile) {
  const name = tile.prompt ?? tile.image_task ?? taskName(tile);
  return `image ${tile.index + 1}: ${name.length > 80 ? `${name.slice(0, 80)}…` : name}`;
}

/** The facts that a tile and the viewer write alike. */
export const sizeText = ({ size }) => (size ? bytes(size) : null);
export const pixelsText = (tile) => (tile.pixels ? pixels(tile.pixels) : null);

export function setRatio(element, ratio) {
  element.style.setProperty("--ratio", Math.min(WIDEST, Math.max(NARROWEST, ratio)).toFixed(4));
}

/** `ratio` is width / height; `loaded` is told the picture's own. */
export function makeTile(dagId, runId, tile, { ratio, open, picks, loaded }) {
  const facts = make("p", { class: "facts" }, ...factsOf(tile));
  const prompt = tile.prompt
    ? make("p", { class: "prompt", title: tile.prompt }, tile.prompt)
    : make("p", { class: "prompt none" }, tile.image_task ?? "No prompt");
  const element = make(
    "li",
    { class: `tile ${tile.state}`, "data-id": tile.id },
    make("div", { class: "frame" }, makeShot(dagId, runId, tile, facts, open, loaded), picks.box(tile)),
    make("div", { class: "text" }, prompt, facts, reasonLine(tile), makeActions(dagId, runId, tile)),
  );
  setRatio(element, ratio);
  return element;
}

/** In a tile without a picture the reason stands in the picture's place. */
const reasonLine = (tile) => (tile.failure && tile.state === "ready" ? make("p", { class: "reason" }) : null);

function makeShot(dagId, runId, tile, facts, open, loaded) {
  if (tile.state === "pending") {
    return make("div", { class: "shot" }, make("div", { class: "state" }, icon("pending"), waitingText(tile)));
  }
  if (tile.state === "failed") {
    const state = make("span", { class: "state" }, icon("failed"), make("span", { class: "reason" }, "Failed"));
    return make("button", { class: "shot", type: "button", "aria-label": `Failed: ${spoken(tile)}`, click: open }, state);
  }
  const hint = make("span", { class: "hint" });
  const image = make("img", { loading: "lazy", decoding: "async", alt: "" });
  const name = `Open ${spoken(tile)}`;
  const shot = make("button", { class: "shot", type: "button", "aria-label": name, click: open }, image, hint);
  const url = pictureUrl(dagId, runId, tile);
  loadPicture(image, url).then((problem) => {
    if (problem) {
      shot.classList.add("broken");
      hint.textContent = problem;
      shot.ariaLabel = `${problem}: ${spoken(tile)}`;
      return;
    }
    shot.classList.add("loaded");
    const [entry] = performance.getEntriesByName(url).slice(-1);
    tile.pixels = [image.naturalWidth, image.naturalHeight];
    tile.size ??= entry?.decodedBodySize || null;
    facts.replaceChildren(...factsOf(tile));
    loaded(image.naturalWidth / image.naturalHeight);
  });
  return shot;
}

function factsOf(tile) {
  if (tile.state !== "ready") return [tile.of > 1 ? `Image ${tile.index + 1} of ${tile.of}` : "1 image"];
  return [[pixelsText(tile), sizeText(tile), counted(tile.credits, "credit")].filter(Boolean).join(" · ")];
}

function makeActions(dagId, runId, tile) {
  const task = tile.failure ?? tile;
  const name = taskName(task);
  const attributes = { target: "_top", click: follow };
  return make(
    "div",
    { class: "actions" },
    make(
      "a",
      { class: "task", href: taskUrl(dagId, runId, task), title: `Task ${name}`, "aria-label": `Task ${name} of ${spoken(tile)}`, ...attributes },
      name,
    ),
    task.try_number
      ? make(
          "a",
          { class: "icon-button", href: taskUrl(dagId, runId, task, task.try_number), "aria-label": `Log of ${name}, ${spoken(tile)}`, title: "Log", ...attributes },
          icon("log"),
        )
      : null,
    tile.uri
      ? make(
          "button",
          { class: "icon-button", type: "button", "aria-label": `Copy S3 URI of ${spoken(tile)}`, title: `Copy ${tile.uri}`, click: () => copy(tile.uri) },
          icon("copy"),
        )
      : null,
    tile.state === "ready"
      ? make(
          "a",
          { class: "icon-button", href: pictureUrl(dagId, runId, tile, true), download: "", "aria-label": `Download ${spoken(tile)}`, title: "Download" },
          icon("download"),
        )
      : null,
  );
}
