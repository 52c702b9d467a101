# SPDX-License-Identifier: Apache-2.0
"""Read the DAG files of a folder: which DAGs they define, and what is wrong with them.

Run as a script, in a throw-away Airflow's environment, it prints :class:`FoundDags` as JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

__all__ = ["FoundDags", "has_dag_files"]


@dataclass(frozen=True)
class FoundDags:
    """DAGs of a folder.

    :param dag_ids: Sorted.
    :param errors: Why a file cannot be imported, in one line, by its path in the folder.
    """

    dag_ids: list[str]
    errors: dict[str, str]

    def choose(self, dag_id: str | None, folder: str) -> str | None:
        """Return the DAG to run; None: there are several, and nobody said which.

        :param dag_id: What was asked for; None: the only one.
        :param folder: For the message.
        :raises LookupError: The folder has no such DAG, or none at all; the message is one line.
        """
        if dag_id is None and self.dag_ids:
            return self.dag_ids[0] if len(self.dag_ids) == 1 else None
        if dag_id in self.dag_ids:
            return dag_id
        missing = f"No DAG {dag_id!r}" if dag_id else "No DAG"
        near = get_close_matches(dag_id or "", self.dag_ids, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.dag_ids)}" if self.dag_ids else ""
        raise LookupError(f"{missing} in {folder}{': ' if hint else ''}{hint}")


def has_dag_files(folder: Path) -> bool:
    """Return whether Airflow would read any file below `folder`."""
    return any(path.suffix in (".py", ".zip") for path in folder.rglob("*"))


def main() -> None:
    """Print what is in the folder that the first argument names."""
    sys.path.append(sys.argv[1])  # as the DAG processor does
    with redirect_stdout(sys.stderr):  # Airflow logs to it, and DAG files may print
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(sys.argv[1])
    errors = {
        os.path.relpath(path, sys.argv[1]): _in_one_line(path, trace) for path, trace in bag.import_errors.items()
    }
    print(json.dumps(asdict(FoundDags(sorted(bag.dags), errors))))


def _in_one_line(path: str, trace: str) -> str:
    """Return the end of a stack trace, with the line of the DAG file that it came from."""
    last = trace.strip().splitlines()[-1]
    lines = re.findall(rf'File "[^"]*{re.escape(Path(path).name)}", line (\d+)', trace)
    return f"line {lines[-1]}: {last}" if lines else last


if __name__ == "__main__":
    main()
