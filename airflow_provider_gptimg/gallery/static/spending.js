// SPDX-License-Identifier: Apache-2.0
// Credits of a run and of a Dag over time: a table and a chart, as the journal in S3 has them.

import * as airflow from "./airflow.js";
import { Dialog } from "./dialog.js";
import { byId, counted, make, svg } from "./dom.js";

const HEADS = { charged: "Charged", refunded: "Refunded", net: "Net", reused: "Saved", unknown: "Unknown" };
/** What a bar is made of, from below. */
const PARTS = { net: "Net", refunded: "Refunded", unknown: "Unknown" };
const [HEIGHT, LEFT, BELOW, ABOVE] = [200, 44, 24, 10];

export class Spending {
  constructor() {
    this.dialog = new Dialog(byId("spending"));
    this.dialog.closed = () => byId("spending-open").focus();
    byId("spending-open").addEventListener("click", () => {
      this.dialog.open();
      this.#load();
    });
    byId("spending-of").addEventListener("change", () => this.#load());
    addEventListener("resize", () => this.dialog.isOpen && this.found && this.#show(...parts(this.found)));
  }

  /** Take the run that is shown; `isOffered`: it makes images. */
  offer(dagId, runId, isOffered) {
    if (runId !== this.runId) this.dialog.close();
    [this.dagId, this.runId] = [dagId, runId];
    byId("spending-open").hidden = !isOffered;
  }

  async #load() {
    const { dagId } = this;
    const of = byId("spending-of").querySelector(":checked").value;
    const runId = of === "run" ? this.runId : null;
    this.asked = `${dagId}/${runId}`;
    const mine = this.asked;
    this.found = null;
    this.#show("Reading the journal …");
    try {
      const found = await airflow.spending(dagId, runId);
      if (mine !== this.asked) return;
      this.found = found;
      this.#show(...parts(found));
    } catch (error) {
      if (mine === this.asked) this.#show(refusal(error));
    }
  }

  #show(said, ...shown) {
    byId("spending-said").textContent = said;
    byId("spending-body").replaceChildren(...shown);
  }
}

/** A sentence, and what is shown below it. */
function parts(found) {
  if (found.missing) return [found.missing];
  const { by, rows, total, cut, runs } = found;
  const known = [`${counted(total.charged, "credit")} charged, ${total.refunded} refunded`];
  if (total.reused) known.push(`${total.reused} saved by reuse`);
  if (total.unknown) known.push(`up to ${total.unknown} more unknown`);
  if (by === "day") known.push(`${cut ? "the latest " : ""}${counted(runs, "run")}, days in UTC`);
  const spent = rows.filter((row) => Object.keys(HEADS).some((name) => row[name]));
  if (!spent.length) return ["The journal has no submissions here."];
  return [known.join(" · "), ...(by === "day" ? [legend(), chart(rows)] : []), table(by, by === "day" ? spent.reverse() : spent, total)];
}

function refusal({ status }) {
  if (status === 401) return "You are not logged in";
  if (status === 403) return "Airflow does not let you see the spending of this Dag";
  if (status === 502) return "The journal in S3 cannot be read; the API server's log says why";
  return status ? `Airflow answers with status ${status}` : "Airflow does not answer";
}

function table(by, rows, total) {
  const names = Object.keys(HEADS).filter((name) => total[name] || ["charged", "refunded", "net"].includes(name));
  const line = (cell, name, amounts) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...names.map((each) => make(cell, {}, String(amounts[each]))));
  const heads = [by === "day" ? "Day" : "Task", ...names.map((name) => HEADS[name])];
  return make(
    "table",
    {},
    make("caption", { class: "unseen" }, by === "day" ? "Credits by day" : "Credits by task"),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => line("td", row.name, row))),
    make("tfoot", {}, line("td", "Total", total)),
  );
}

function legend() {
  const keys = Object.entries(PARTS).map(([part, name]) => make("li", { class: part }, name));
  return make("ul", { class: "legend", "aria-hidden": "true" }, ...keys);
}

/** One bar for each day, as wide as there is room: text that scales with a drawing is too small on a phone. */
function chart(rows) {
  const width = byId("spending-body").clientWidth;
  const sumOf = (row) => Object.keys(PARTS).reduce((sum, part) => sum + row[part], 0);
  const most = roundUp(Math.max(...rows.map(sumOf)));
  const step = (width - LEFT) / rows.length;
  const toY = (credits) => ABOVE + (HEIGHT - ABOVE - BELOW) * (1 - credits / most);
  const lines = [0, most / 2, most].flatMap((credits) => [
    svg("line", { class: "axis", x1: LEFT, x2: width, y1: toY(credits), y2: toY(credits) }),
    svg("text", { x: LEFT - 8, y: toY(credits) + 4, "text-anchor": "end" }, String(credits)),
  ]);
  const bars = rows.flatMap((row, day) => {
    let below = 0;
    return Object.keys(PARTS).map((part) => {
      const [from, to] = [toY(below), toY((below += row[part]))];
      const box = { x: LEFT + (day + 0.15) * step, width: step * 0.7, y: to, height: from - to };
      return row[part] ? svg("rect", { class: part, ...box }, svg("title", {}, `${row.name}: ${row[part]} ${PARTS[part]}`)) : null;
    });
  });
  const days = [0, Math.floor(rows.length / 2), rows.length - 1].map((day, place) => {
    const at = { x: LEFT + (day + 0.5) * step + [-step / 2, 0, step / 2][place], y: HEIGHT - 6 };
    return svg("text", { ...at, "text-anchor": ["start", "middle", "end"][place] }, rows[day].name);
  });
  const label = `Credits by day, ${rows[0].name} to ${rows.at(-1).name}: the table below has the figures`;
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label }, ...lines, ...bars, ...days);
}

/** The next even number of one leading digit or a half of it: 4, 10, 50, 200. */
function roundUp(credits) {
  const power = 10 ** Math.floor(Math.log10(Math.max(credits, 1)));
  return Math.max(2, [1, 2, 5, 10].map((times) => times * power).find((each) => each >= credits));
}
