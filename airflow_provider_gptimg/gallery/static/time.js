// SPDX-License-Identifier: Apache-2.0
// A time as Airflow's pages write it, in the time zone that the viewer has chosen there.

function zone() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("timezone");
  } catch {
    // Storage may be forbidden.
  }
  return chosen?.replaceAll('"', "") || undefined;
}

const FIELDS = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };

/** 2026-11-28 09:30:00 */
export function time(iso) {
  const moment = new Date(iso);
  const format = (timeZone) => new Intl.DateTimeFormat("sv-SE", { ...FIELDS, timeZone }).format(moment);
  try {
    return format(zone());
  } catch {
    return format(); // a zone that this browser does not know
  }
}
