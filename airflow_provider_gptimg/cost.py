# SPDX-License-Identifier: Apache-2.0
"""`python -m airflow_provider_gptimg.cost DAG_ID`: estimate what one run of a DAG costs from its file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import product
from typing import Any

from airflow_provider_gptimg.airflow_compat import AirflowException, DecoratedOperator, XComArg
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

__all__ = ["TaskCost", "main", "task_costs"]


@dataclass(frozen=True)
class TaskCost:
    """The cost of one task in one run.

    :param images: None: not known before the run, for the reason that `why` says.
    """

    task_id: str
    images: int | None
    why: str = ""

    @property
    def credits(self) -> int:
        """Credits; 0 where they are not known."""
        return CREDITS_PER_IMAGE * (self.images or 0)


class _Unknown(Exception):
    """It is known at run time only."""


def task_costs(dag: Any) -> list[TaskCost]:
    """Return the cost of each task of `dag` that submits, all of its mapped instances together."""
    return [
        _cost(task) for task in dag.tasks if issubclass(_class(task), (GptImgSubmitOperator, GptImgBatchToS3Operator))
    ]


def _class(task: Any) -> type:
    return task.operator_class if _is_mapped(task) else type(task)


def _cost(task: Any) -> TaskCost:
    try:
        return TaskCost(task.task_id, sum(map(_images, _instances(task))))
    except _Unknown as unknown:
        limit = _max_credits(task)
        brake = "" if limit is None else f"; max_credits allows {limit} credits an instance"
        return TaskCost(task.task_id, None, f"{unknown}{brake}")


def _max_credits(task: Any) -> Any:
    if not _is_mapped(task):
        return task.max_credits
    own = task.partial_kwargs
    defaults = {**task.dag.default_args, **task.task_group.default_args, **(own.get("default_args") or {})}
    return {**defaults, **own}.get("max_credits")


def _is_mapped(task: Any) -> bool:
    return hasattr(task, "partial_kwargs")


def _instances(task: Any) -> Iterable[Any]:
    """Return each instance of a task as an operator."""
    if task.get_closest_mapped_task_group() is not None:
        raise _Unknown("its task group is mapped")
    if issubclass(_class(task), DecoratedOperator):
        raise _Unknown("its function decides")
    if not _is_mapped(task):
        return [task]
    expanded = task.expand_input.value
    if isinstance(expanded, Mapping):
        lists = [_literal(values, f"it is mapped over {name}") for name, values in expanded.items()]
        expanded = [dict(zip(expanded, values, strict=True)) for values in product(*lists)]
    return [_unmap(task, _literal(own, "it is mapped")) for own in _literal(expanded, "it is mapped")]


def _unmap(task: Any, own: Mapping[str, Any]) -> Any:
    """Return an instance with these arguments of its own, made as a run makes it: with the DAG's default arguments."""
    try:
        return task.unmap(own)
    except (TypeError, ValueError, AirflowException) as error:
        raise _Unknown(f"the run would refuse it: {error}") from None


def _literal(values: Any, what: str) -> Any:
    if isinstance(values, XComArg):
        raise _Unknown(f"{what}, by a task's result")
    return values


def _images(task: Any) -> int:
    if not isinstance(task, GptImgBatchToS3Operator):
        return _number(task.n)
    requests = _literal(task.requests, "its requests are known at run time")
    if isinstance(requests, str):
        raise _Unknown(f"its requests are read at run time from {requests}")
    if not isinstance(requests, Sequence):
        raise _Unknown(f"the run would refuse it: requests={requests!r:.80} is not a list")
    each = [_literal(asked, "its requests are known at run time") for asked in requests]
    return sum(_number(asked.get("n", 1)) if isinstance(asked, Mapping) else 1 for asked in each)


def _number(n: Any) -> int:
    if isinstance(n, XComArg) or (isinstance(n, str) and "{" in n):
        raise _Unknown("n is rendered at run time")
    try:
        return ImageRequest.check("any", n=n).n
    except GptImgRequestError as error:
        raise _Unknown(f"the run would refuse it: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_gptimg.cost",
        description="Estimate what one run of a DAG in the DAGs folder costs, from its file. Nothing is sent.",
    )
    parser.add_argument("dag_id")
    dag_id = parser.parse_args(arguments).dag_id
    with redirect_stdout(sys.stderr):  # Airflow logs to it
        from airflow_provider_gptimg.airflow_compat import DagBag

        bag = DagBag(collect_dags=False)
        sys.path.append(str(bag.dag_folder))  # as Airflow does: DAG files import modules that lie beside them
        bag.collect_dags()
    if dag_id not in bag.dags:
        print(f"There is no DAG {dag_id!r} in the DAGs folder {bag.dag_folder}", file=sys.stderr)
        for path, error in bag.import_errors.items():
            print(f"{path} cannot be imported: {error.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    _show(task_costs(bag.dags[dag_id]))
    return 0


def _show(costs: list[TaskCost]) -> None:
    width = max([len(cost.task_id) for cost in costs] + [len("known in all")])
    print(f"{'task':{width}}  {'images':>7}  {'credits':>7}")
    for cost in costs:
        if cost.images is not None:
            print(f"{cost.task_id:{width}}  {cost.images:7}  {cost.credits:7}")
    images = sum(cost.images or 0 for cost in costs)
    print(f"{'known in all':{width}}  {images:7}  {images * CREDITS_PER_IMAGE:7}")
    unknown = [cost for cost in costs if cost.images is None]
    if unknown:
        print("Not known before the run:")
    for cost in unknown:
        print(f"  {cost.task_id}: {cost.why}")


if __name__ == "__main__":
    sys.exit(main())
