# SPDX-License-Identifier: Apache-2.0
"""The role of each task of a Dag, read from the serialized Dag; pure.

Template fields identify a task: subclasses inherit them, whatever their names are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["Graph", "Role"]


class Role(Enum):
    """The role of a task."""

    SUBMIT = "asks for images"
    BATCH = "asks for many, and mirrors them"
    WAIT = "waits for images that another task asked for"
    MIRROR = "waits for them and mirrors them"

    @property
    def submits(self) -> bool:
        """True if it asks for images of its own."""
        return self in (Role.SUBMIT, Role.BATCH)

    @classmethod
    def of(cls, template_fields: Collection[str]) -> Role | None:
        """Return the role of a task with these template fields; None: it is not one of this provider's."""
        fields = set(template_fields)
        if "gptimg_conn_id" not in fields:
            return None
        if "gptimg_task_id" in fields:
            return cls.MIRROR if "s3_key" in fields else cls.WAIT
        if "max_credits" not in fields:
            return None
        return cls.BATCH if "s3_key" in fields else cls.SUBMIT


@dataclass(frozen=True)
class Graph:
    """The tasks of a run that make, await or mirror images, and what each task of the run depends on.

    :param roles: By task id.
    :param upstream: By task id, the ids of the tasks directly before it.
    """

    roles: Mapping[str, Role] = field(default_factory=dict)
    upstream: Mapping[str, Collection[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, serialized: Any) -> Graph:
        """Read a serialized Dag; skip what cannot be read."""
        roles: dict[str, Role] = {}
        upstream: dict[str, set[str]] = {}
        for task in _tasks(serialized):
            task_id, fields, downstream = (task.get(name) for name in ("task_id", "template_fields", _DOWNSTREAM))
            if not isinstance(task_id, str):
                continue
            if isinstance(fields, list) and (role := Role.of([each for each in fields if isinstance(each, str)])):
                roles[task_id] = role
            for other in downstream if isinstance(downstream, list) else ():
                if isinstance(other, str):
                    upstream.setdefault(other, set()).add(task_id)
        return cls(roles, upstream)

    @classmethod
    def merge(cls, graphs: Iterable[Graph]) -> Graph:
        """Return one graph of several versions of a Dag; where they differ, the last one counts."""
        roles: dict[str, Role] = {}
        upstream: dict[str, Collection[str]] = {}
        for graph in graphs:
            roles |= graph.roles
            upstream |= graph.upstream
        return cls(roles, upstream)

    def levels_above(self, task_id: str) -> Iterator[set[str]]:
        """Yield the tasks directly before a task, then those before them, and so on; each task once."""
        seen, level = {task_id}, {task_id}
        while level := {above for below in level for above in self.upstream.get(below, ())} - seen:
            seen |= level
            yield level

    def count_above(self, task_id: str) -> int:
        """Return the number of tasks that a task depends on, directly or not: more than any of them has."""
        return sum(map(len, self.levels_above(task_id)))


_DOWNSTREAM = "downstream_task_ids"


def _tasks(serialized: Any) -> Iterator[Mapping[str, Any]]:
    dag = serialized.get("dag") if isinstance(serialized, Mapping) else None
    tasks = dag.get("tasks") if isinstance(dag, Mapping) else None
    for task in tasks if isinstance(tasks, list) else ():
        inner = task.get("__var", task) if isinstance(task, Mapping) else None
        if isinstance(inner, Mapping):
            yield inner
