// SPDX-License-Identifier: Apache-2.0
// One image in full, with all that is known of it.

import { pictureProblem, pictureUrl } from "./airflow.js";
import { byId, bytes, copy, make } from "./dom.js";
import { taskName } from "./grid.js";

export class Viewer {
  /** `among` gives the tiles to step through; `reason` a promise of why one failed. */
  constructor(among, reason) {
    this.among = among;
    this.reason = reason;
    this.dialog = byId("viewer");
    byId("close").addEventListener("click", () => this.close());
    byId("previous").addEventListener("click", () => this.#step(-1));
    byId("next").addEventListener("click", () => this.#step(1));
    byId("viewer-copy").addEventListener("click", () => copy(this.tile.uri));
    this.dialog.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (way) this.#step(way);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.close(); // beside it
    });
    this.dialog.addEventListener("close", () => {
      byId("stage").replaceChildren();
      document.querySelector(`[data-id="${CSS.escape(this.tile.id)}"] button.shot`)?.focus();
    });
  }

  open(dagId, runId, tile) {
    [this.dagId, this.runId] = [dagId, runId];
    this.#show(tile);
    if (!this.dialog.open) this.dialog.showModal();
  }

  close() {
    this.dialog.close();
  }

  #step(way) {
    const tiles = this.among();
    const tile = tiles[tiles.findIndex(({ id }) => id === this.tile.id) + way];
    if (tile) this.#show(tile);
  }

  #show(tile) {
    this.tile = tile;
    const ready = tile.state === "ready";
    byId("viewer-title").textContent = tile.image_task ?? taskName(tile);
    byId("viewer-prompt").textContent = tile.prompt ?? "";
    this.#showPicture(tile, ready);
    this.#showReason(tile);
    this.#showFacts();
    const download = byId("viewer-download");
    download.hidden = !ready;
    if (ready) download.href = pictureUrl(this.dagId, this.runId, tile, true);
    byId("viewer-copy").hidden = !tile.uri;
    const tiles = this.among();
    const at = tiles.findIndex(({ id }) => id === tile.id);
    byId("position").textContent = `${at + 1} of ${tiles.length}`;
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at >= tiles.length - 1;
  }

  #showPicture(tile, ready) {
    const stage = byId("stage");
    if (!ready) return stage.replaceChildren("No image");
    const image = make("img", { alt: tile.prompt ?? tile.image_task });
    image.addEventListener("load", () => {
      tile.pixels = `${image.naturalWidth} × ${image.naturalHeight}`;
      if (this.tile === tile) this.#showFacts();
    });
    const url = pictureUrl(this.dagId, this.runId, tile);
    image.addEventListener("error", async () => {
      const problem = await pictureProblem(url).catch(() => null);
      if (this.tile === tile) stage.replaceChildren(make("p", { role: "alert" }, problem ?? "The image could not be loaded"));
    });
    image.src = url;
    stage.replaceChildren(image);
  }

  #showReason(tile) {
    const line = byId("viewer-reason");
    line.hidden = !tile.failure;
    line.textContent = "";
    if (tile.failure) this.reason(tile).then((text) => this.tile === tile && (line.textContent = text));
  }

  #showFacts() {
    const { tile } = this;
    const known = {
      Task: taskName(tile),
      Pixels: tile.pixels,
      Size: tile.size ? `${bytes(tile.size)} (${tile.size.toLocaleString()} bytes)` : null,
      Type: tile.content_type,
      Credits: tile.credits,
      S3: tile.uri,
      SHA256: tile.uri ? tile.version : null,
    };
    const rows = Object.entries(known).filter(([, value]) => value);
    byId("facts").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  }
}
