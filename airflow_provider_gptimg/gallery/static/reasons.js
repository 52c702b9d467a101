// SPDX-License-Identifier: Apache-2.0
// Why images are missing: as it is recorded, else as the log of the task that failed says.

import { failureReason } from "./airflow.js";
import { taskName } from "./dom.js";

const LOGS_AT_ONCE = 2;

export class Reasons {
  constructor(dagId, runId) {
    [this.dagId, this.runId] = [dagId, runId];
    this.known = new Map(); // a failed attempt -> promise of its reason
    this.underWay = 0;
    this.wanted = [];
  }

  /** A promise of why a tile has no image, or none in S3; each attempt's log is read once, two at a time. */
  of({ failure, task_id, map_index }) {
    const name = taskName(failure);
    let said = "";
    if (failure.not_run) said = `${failure.not_run} did not run, because ${name} failed: `;
    else if (name !== taskName({ task_id, map_index })) said = `${name}: `;
    if (failure.reason) return Promise.resolve(failure.not_run ? failure.reason : said + failure.reason);
    const key = `${failure.task_id}:${failure.map_index}:${failure.try_number}`;
    if (!this.known.has(key)) {
      const reading = new Promise((resolve) => this.wanted.push(resolve))
        .then(() => failureReason(this.dagId, this.runId, failure))
        .catch(() => null)
        .finally(() => {
          this.underWay -= 1;
          this.#read();
        });
      this.known.set(key, reading);
      this.#read();
    }
    return this.known.get(key).then((reason) => said + (reason ?? "its log could not be read"));
  }

  #read() {
    while (this.underWay < LOGS_AT_ONCE && this.wanted.length) {
      this.underWay += 1;
      this.wanted.shift()();
    }
  }
}
