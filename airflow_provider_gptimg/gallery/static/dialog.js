// SPDX-License-Identifier: Apache-2.0
// A dialog that keeps the Tab key to itself, also within a frame, and that Escape always closes.

const FOCUSABLE = "a[href], button, input, select, textarea, [tabindex]";

export class Dialog {
  constructor(element) {
    this.element = element;
    this.closed = () => {};
    element.querySelector("[data-close]").addEventListener("click", () => this.close());
    element.addEventListener("keydown", (event) => this.#onTab(event));
    element.addEventListener("click", (event) => {
      if (event.target === element) this.close(); // beside it
    });
    element.addEventListener("close", () => this.closed());
    // Of the document: the focus may be nowhere, as after a click on what takes none.
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.isOpen) return;
      event.preventDefault();
      this.close();
    });
  }

  get isOpen() {
    return this.element.open;
  }

  open() {
    if (!this.isOpen) this.element.showModal();
  }

  close() {
    this.element.close();
  }

  /** A browser's own dialog lets the Tab key go on to what is around the frame. */
  #onTab(event) {
    if (event.key !== "Tab") return;
    const all = [...this.element.querySelectorAll(FOCUSABLE)].filter((each) => each.checkVisibility());
    const at = all.indexOf(document.activeElement);
    const leaves = event.shiftKey ? at <= 0 : at === all.length - 1;
    if (!leaves) return;
    event.preventDefault();
    all.at(event.shiftKey ? -1 : 0).focus();
  }
}
