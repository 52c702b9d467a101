// SPDX-License-Identifier: Apache-2.0
// Light or dark, as Airflow is set, also when that changes.

const system = matchMedia("(prefers-color-scheme: dark)");

function apply() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme"); // where Airflow's pages keep it
  } catch {
    // Storage may be forbidden: then the system decides.
  }
  const dark = chosen === "dark" || (chosen !== "light" && system.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

apply();
addEventListener("storage", apply);
system.addEventListener("change", apply);
