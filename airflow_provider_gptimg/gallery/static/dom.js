// SPDX-License-Identifier: Apache-2.0
// Elements from texts. Nothing here or elsewhere makes markup of a text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes, listeners (functions) and children; a text stays text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A part of a drawing, likewise. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const PATHS = {
  copy: "M9 9h10v11H9z M15 9V4H5v11h4",
  download: "M12 4v11 M7.5 11 12 15.5 16.5 11 M5 20h14",
  log: "M6 4h12v16H6z M9 9h6 M9 12.5h6 M9 16h4",
  pending: "M12 7v5l3.2 2 M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  failed: "M12 8v5 M12 16.3v.2 M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
};

export const icon = (name) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));

let fading;

/** Say something that passes, also to a screen reader; an open dialog says it itself, for the page behind it is inert. */
export function say(text) {
  const toast = document.querySelector("dialog[open] .toast") ?? byId("said");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => toast.classList.remove("shown"), 2500);
}

/** Copy a text, and say so in a few words. */
export async function copy(text, said = `Copied ${text}`) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard is for pages over HTTPS and on this machine only.
    const field = make("textarea", { class: "unseen" });
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (!done) return say("Could not be copied");
  }
  say(said);
}

export function bytes(size) {
  if (size < 1000) return `${size} B`;
  const units = ["kB", "MB", "GB"];
  let unit = -1;
  do {
    size /= 1000;
    unit += 1;
  } while (size >= 999.5 && unit < units.length - 1);
  return `${size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

export const pixels = ([width, height]) => `${width} × ${height}`;
export const taskName = ({ task_id, map_index }) => (map_index >= 0 ? `${task_id} [${map_index}]` : task_id);
export const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
