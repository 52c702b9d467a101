// SPDX-License-Identifier: Apache-2.0
// Light or dark, as Airflow is set, also when that changes; on the background that Airflow's page has.

const CLEAR = "rgba(0, 0, 0, 0)";
const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

function apply() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme"); // where Airflow's pages keep it
  } catch {
    // Storage may be forbidden: then the system decides.
  }
  const dark = chosen === "dark" || (chosen !== "light" && system.matches);
  root.dataset.theme = dark ? "dark" : "light";
  adoptBackground();
}

function adoptBackground() {
  if (parent === window) return;
  try {
    const { body, documentElement } = parent.document;
    const colours = [body, documentElement].map((element) => parent.getComputedStyle(element).backgroundColor);
    const colour = colours.find((one) => one !== CLEAR);
    if (colour) root.style.setProperty("--page", colour);
  } catch {
    // Shown by another site: our own background will do.
  }
}

function applySoon() {
  apply();
  setTimeout(apply, 300); // Airflow's page has to change first
}

apply();
addEventListener("storage", applySoon);
system.addEventListener("change", applySoon);
