// SPDX-License-Identifier: Apache-2.0
// The grid of tiles: kept in step with what a run has, touching only what changed.

import { byId } from "./dom.js";
import { Reasons } from "./reasons.js";
import { makeTile, setRatio } from "./tile.js";

export class Grid {
  /** `open` shows a tile in full; `picks` knows which tiles are selected. */
  constructor(open, picks) {
    this.list = byId("grid");
    this.open = open;
    this.picks = picks;
    this.shown = new Map(); // a tile's id -> {element, tile, said}
    this.ratios = new Map(); // a tile's id, or its task's -> width / height, as its picture has it
    this.seen = new IntersectionObserver((entries) => this.#onSeen(entries), { rootMargin: "200px" });
    this.list.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Show these tiles of this run. */
  update(dagId, runId, tiles) {
    if (this.dagId !== dagId || this.runId !== runId) {
      this.seen.disconnect();
      this.shown.clear();
      this.ratios.clear();
      this.list.replaceChildren();
      [this.dagId, this.runId] = [dagId, runId];
      this.reasons = new Reasons(dagId, runId);
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
        const fresh = this.#make(tile);
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

  #make(tile) {
    const ratio = this.ratios.get(tile.id) ?? this.#expectedRatio(tile);
    const element = makeTile(this.dagId, this.runId, tile, {
      ratio,
      open: () => this.open(tile),
      picks: this.picks,
      loaded: (own) => {
        this.ratios.set(tile.id, own);
        this.ratios.set(tile.task_id, own);
        setRatio(element, own);
      },
    });
    if (tile.failure) this.seen.observe(element);
    return element;
  }

  /** So that a tile keeps its size when its picture comes. */
  #expectedRatio({ pixels, ratio, task_id }) {
    return (pixels && pixels[0] / pixels[1]) ?? ratio ?? this.ratios.get(task_id) ?? 1;
  }

  #onSeen(entries) {
    for (const { isIntersecting, target } of entries) {
      const known = this.shown.get(target.dataset.id);
      if (!isIntersecting || known?.element !== target) continue;
      this.seen.unobserve(target);
      this.reasons.of(known.tile).then((text) => {
        const line = target.querySelector(".reason");
        line.textContent = text;
      });
    }
  }

  /** Arrow keys go from image to image, as they lie. */
  #onKey(event) {
    if (!event.target.classList?.contains("shot")) return;
    const shots = [...this.list.querySelectorAll(".tile:not([hidden]) button.shot")];
    const at = shots.indexOf(event.target);
    const to = {
      ArrowRight: () => shots[at + 1],
      ArrowLeft: () => shots[at - 1],
      ArrowDown: () => nearest(shots, at, 1),
      ArrowUp: () => nearest(shots, at, -1),
      Home: () => shots[0],
      End: () => shots.at(-1),
    };
    const shot = to[event.key]?.();
    if (!shot) return;
    event.preventDefault();
    shot.focus();
  }
}

/** The tile of the next row, or of the one before, whose middle is nearest. */
function nearest(shots, at, way) {
  const from = shots[at].getBoundingClientRect();
  const middle = (box) => box.left + box.width / 2;
  let [found, row] = [undefined, null];
  for (let i = at + way; shots[i]; i += way) {
    const box = shots[i].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 1) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) >= 1) break;
    const distance = Math.abs(middle(box) - middle(from));
    if (!found || distance < found.distance) found = { shot: shots[i], distance };
  }
  return found?.shot;
}
