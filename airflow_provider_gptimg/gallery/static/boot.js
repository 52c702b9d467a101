// SPDX-License-Identifier: Apache-2.0
// Runs before the first paint: where the page is shown, and Airflow's own colours and fonts.
"use strict";

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  // Ours, and the tokens of Airflow's theme that they come from.
  const TOKENS = {
    "--page": "--chakra-colors-bg",
    "--soft": "--chakra-colors-bg-muted",
    "--line": "--chakra-colors-border",
    "--text": "--chakra-colors-fg",
    "--dim": "--chakra-colors-fg-muted",
    "--accent": "--chakra-colors-brand-solid",
    "--on-accent": "--chakra-colors-brand-contrast",
    "--link": "--chakra-colors-fg-info",
    "--good": "--chakra-colors-fg-success",
    "--font": "--chakra-fonts-body",
  };

  // On a run or a task instance there is nothing to choose.
  const of = new URLSearchParams(location.search).get("of");
  root.dataset.of = of === "task" || of === "run" ? of : "all";

  function apply() {
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme"); // where Airflow's pages keep it
    } catch {
      // Storage may be forbidden: then the system decides.
    }
    root.dataset.theme = chosen === "dark" || (chosen !== "light" && system.matches) ? "dark" : "light";
    adoptTheme();
  }

  function adoptTheme() {
    if (parent === window) return;
    try {
      const airflow = parent.getComputedStyle(parent.document.documentElement);
      for (const [ours, theirs] of Object.entries(TOKENS)) {
        const value = airflow.getPropertyValue(theirs).trim();
        if (value) root.style.setProperty(ours, value);
      }
      const size = parent.getComputedStyle(parent.document.body).fontSize;
      if (size) root.style.setProperty("--font-size", size);
    } catch {
      // Shown by another site: our own look will do.
    }
  }

  function applySoon() {
    apply();
    setTimeout(apply, 300); // Airflow's page has to change first
  }

  apply();
  addEventListener("storage", applySoon);
  system.addEventListener("change", applySoon);
})();
