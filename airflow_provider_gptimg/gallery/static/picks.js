// SPDX-License-Identifier: Apache-2.0
// Images that somebody has selected: to compare, to copy their URIs, to download them.

import { loadPicture, MOST_IN_ZIP, pictureUrl, zipUrl } from "./airflow.js";
import { Dialog } from "./dialog.js";
import { byId, copy, counted, make, say } from "./dom.js";
import { pixelsText, sizeText, spoken } from "./tile.js";

const [FEWEST, MOST] = [2, 4];

export class Picks {
  constructor() {
    this.picked = new Map(); // a tile's id -> the tile, in the order of selection
    this.dialog = new Dialog(byId("comparison"));
    this.dialog.closed = () => {
      byId("sides").replaceChildren();
      byId("compare").focus();
    };
    byId("compare").addEventListener("click", () => this.#compare());
    byId("copy-list").addEventListener("click", () => this.#copyUris((uris) => uris.join("\n")));
    byId("copy-json").addEventListener("click", () => this.#copyUris((uris) => JSON.stringify(uris, null, 2)));
    byId("zip").addEventListener("click", (event) => this.#checkZip(event));
    byId("unpick").addEventListener("click", () => this.#clear());
  }

  /** A box to select a tile by; null for a tile that has no picture. */
  box(tile) {
    if (tile.state !== "ready") return null;
    const box = make("input", { type: "checkbox", "aria-label": `Select ${spoken(tile)}` });
    box.checked = this.picked.has(tile.id);
    box.addEventListener("change", () => {
      if (box.checked) this.picked.set(tile.id, tile);
      else this.picked.delete(tile.id);
      this.#show();
    });
    return make("label", { class: "pick", title: "Select" }, box);
  }

  /** Forget what is not there any more, and take what has changed. */
  update(dagId, runId, tiles) {
    [this.dagId, this.runId] = [dagId, runId];
    if (!this.picked.size) return;
    const there = new Map(tiles.filter(({ state }) => state === "ready").map((tile) => [tile.id, tile]));
    for (const id of [...this.picked.keys()]) {
      if (there.has(id)) this.picked.set(id, there.get(id));
      else this.picked.delete(id);
    }
    this.#show();
  }

  #show() {
    const tiles = [...this.picked.values()];
    byId("picks").hidden = !tiles.length;
    document.documentElement.toggleAttribute("data-picking", tiles.length > 0);
    if (!tiles.length) return;
    byId("picked").textContent = `${tiles.length} selected`;
    const compare = byId("compare");
    const fits = tiles.length >= FEWEST && tiles.length <= MOST;
    compare.ariaDisabled = String(!fits);
    compare.title = fits ? "" : `Select ${FEWEST} to ${MOST} images to compare them`;
    byId("zip").href = zipUrl(this.dagId, this.runId, tiles.slice(0, MOST_IN_ZIP));
  }

  #clear() {
    this.picked.clear();
    for (const box of document.querySelectorAll(".pick input:checked")) box.checked = false;
    this.#show();
    document.querySelector("button.shot")?.focus();
  }

  #copyUris(format) {
    const uris = [...this.picked.values()].map(({ uri }) => uri).filter(Boolean);
    const missing = this.picked.size - uris.length;
    if (!uris.length) return say("None of them is in S3");
    return copy(format(uris), `Copied ${counted(uris.length, "URI")}${missing ? `; ${missing} not in S3` : ""}`);
  }

  #checkZip(event) {
    if (this.picked.size <= MOST_IN_ZIP) return say("The zip is being downloaded");
    event.preventDefault();
    return say(`Select at most ${MOST_IN_ZIP} images for a zip`);
  }

  #compare() {
    const tiles = [...this.picked.values()];
    if (tiles.length < FEWEST || tiles.length > MOST) return say(`Select ${FEWEST} to ${MOST} images to compare them`);
    byId("comparison-title").textContent = `Compare ${tiles.length} Images`;
    const sides = byId("sides");
    sides.dataset.count = tiles.length;
    sides.replaceChildren(...tiles.map((tile) => this.#side(tile)));
    this.dialog.open();
  }

  #side(tile) {
    const image = make("img", { alt: tile.prompt ?? tile.image_task });
    const frame = make("div", { class: "side-frame" }, image);
    loadPicture(image, pictureUrl(this.dagId, this.runId, tile)).then((problem) => {
      if (problem) frame.replaceChildren(make("p", { role: "alert" }, problem));
    });
    const facts = [pixelsText(tile), sizeText(tile)].filter(Boolean).join(" · ");
    const caption = make(
      "figcaption",
      {},
      make("p", { class: "prompt", title: tile.prompt }, tile.prompt ?? tile.image_task),
      make("p", { class: "facts" }, facts),
    );
    return make("figure", { class: "side" }, frame, caption);
  }
}
