// SPDX-License-Identifier: Apache-2.0
// One image in full, with all that is known of it.

import { follow, loadPicture, pictureUrl, taskUrl } from "./airflow.js";
import { Dialog } from "./dialog.js";
import { byId, copy, icon, make, taskName } from "./dom.js";
import { pixelsText, sizeText } from "./tile.js";

export class Viewer {
  /** `among` gives the tiles to step through; `reason` a promise of why one failed. */
  constructor(among, reason) {
    this.among = among;
    this.reason = reason;
    this.dialog = new Dialog(byId("viewer"));
    byId("previous").addEventListener("click", () => this.#step(-1));
    byId("next").addEventListener("click", () => this.#step(1));
    byId("viewer-copy").addEventListener("click", () => copy(this.tile.uri));
    byId("show-all").addEventListener("click", () => this.#clamp(byId("show-all").ariaExpanded === "true"));
    for (const id of ["viewer-task", "viewer-log"]) byId(id).addEventListener("click", follow);
    this.dialog.element.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (way) this.#step(way);
    });
    addEventListener("resize", () => this.dialog.isOpen && this.#clamp(true));
    this.dialog.closed = () => {
      byId("stage").replaceChildren();
      document.querySelector(`[data-id="${CSS.escape(this.tile.id)}"] button.shot`)?.focus();
    };
  }

  open(dagId, runId, tile) {
    [this.dagId, this.runId] = [dagId, runId];
    this.dialog.open();
    this.#show(tile);
  }

  close() {
    if (this.dialog.isOpen) this.dialog.close();
  }

  #step(way) {
    const tiles = this.among();
    const tile = tiles[tiles.findIndex(({ id }) => id === this.tile.id) + way];
    if (tile) this.#show(tile);
  }

  #show(tile) {
    this.tile = tile;
    const ready = tile.state === "ready";
    byId("viewer-title").textContent = tile.prompt ?? tile.image_task ?? taskName(tile);
    this.#clamp(true);
    this.#showReason(tile);
    (ready ? this.#showPicture : this.#showFailure).call(this, tile);
    this.#showFacts();
    const download = byId("viewer-download");
    download.hidden = !ready;
    if (ready) download.href = pictureUrl(this.dagId, this.runId, tile, true);
    byId("viewer-copy").hidden = !tile.uri;
    const task = tile.failure ?? tile;
    byId("viewer-task").href = taskUrl(this.dagId, this.runId, task);
    byId("viewer-log").href = taskUrl(this.dagId, this.runId, task, task.try_number);
    byId("viewer-log").hidden = !task.try_number;
    const tiles = this.among();
    const at = tiles.findIndex(({ id }) => id === tile.id);
    byId("position").textContent = `${at + 1} of ${tiles.length}`;
    // Not disabled: that would take the focus away from who steps through.
    byId("previous").ariaDisabled = String(at <= 0);
    byId("next").ariaDisabled = String(at >= tiles.length - 1);
  }

  /** Show the beginning of a long prompt, or all of it. */
  #clamp(isClamped) {
    const [title, button] = [byId("viewer-title"), byId("show-all")];
    title.classList.toggle("clamped", isClamped);
    title.scrollTop = 0;
    button.ariaExpanded = String(!isClamped);
    button.textContent = isClamped ? "Show All" : "Show Less";
    if (isClamped) button.hidden = title.scrollHeight <= title.clientHeight + 1;
  }

  #showPicture(tile) {
    const stage = byId("stage");
    const image = make("img", { alt: tile.prompt ?? tile.image_task });
    stage.className = "stage";
    stage.replaceChildren(image);
    loadPicture(image, pictureUrl(this.dagId, this.runId, tile)).then((problem) => {
      if (this.tile !== tile) return;
      if (problem) return stage.replaceChildren(make("p", { role: "alert" }, problem));
      tile.pixels = [image.naturalWidth, image.naturalHeight];
      this.#showFacts();
    });
  }

  #showFailure(tile) {
    const stage = byId("stage");
    const text = make("p", { class: "failure-text" }, "Reading the log …");
    stage.className = "stage failure";
    stage.replaceChildren(icon("failed"), make("p", { class: "notice-title" }, `${taskName(tile.failure)} failed`), text);
    this.reason(tile).then((reason) => this.tile === tile && (text.textContent = reason));
  }

  /** Of an image that is there, and not in S3. */
  #showReason(tile) {
    const line = byId("viewer-reason");
    line.hidden = !tile.failure || tile.state !== "ready";
    line.textContent = "";
    if (!line.hidden) this.reason(tile).then((text) => this.tile === tile && (line.textContent = text));
  }

  #showFacts() {
    const { tile } = this;
    const known = {
      Task: taskName(tile),
      Image: tile.of > 1 ? `${tile.index + 1} of ${tile.of}` : null,
      Pixels: pixelsText(tile),
      Size: sizeText(tile),
      Type: tile.content_type,
      Credits: tile.credits,
      S3: tile.uri,
      "Image task": tile.image_task,
      SHA256: tile.uri ? tile.version : null,
    };
    const rows = Object.entries(known).filter(([, value]) => value);
    byId("facts").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  }
}
