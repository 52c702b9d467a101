# SPDX-License-Identifier: Apache-2.0
"""The TaskFlow decorator `@task.gptimg_batch`: a function returns many requests, the task brings their images to S3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import TaskDecorator, task_decorator_factory
from airflow_provider_gptimg.decorators.functions import FunctionOperator, refuse_none, refuse_operator_arguments
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.verdicts import airflow_verdict

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["gptimg_batch_task"]

_REQUESTS_KEY = "requests"


class _GptImgBatchDecoratedOperator(FunctionOperator, GptImgBatchToS3Operator):
    """Mirror the images of the requests that a function returns, and return a summary (dict)."""

    # Without the requests: what the function returns may hold foreign text, which must not be rendered.
    template_fields: Sequence[str] = (
        *FunctionOperator.template_fields,
        *(name for name in GptImgBatchToS3Operator.template_fields if name != "requests"),
    )
    custom_operator_name = "@task.gptimg_batch"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(requests=(), **kwargs)  # the function says them

    def execute(self, context: Context) -> Any:
        """Call the function, submit what it returns, and return the summary.

        :raises GptImgError: As :meth:`GptImgBatchToS3Operator.execute`.
        """
        returned = self.call_function(context)
        lazy = isinstance(returned, Iterable) and not isinstance(returned, (str, Mapping))
        self.requests = list(returned) if lazy else returned
        with airflow_verdict():
            self._check_returned()
        # Past DecoratedOperator, which would split the result by `multiple_outputs`, and fails at that on Airflow 3.0.
        return GptImgBatchToS3Operator.execute(self, context)

    def _keep_requests(self, context: Context) -> None:
        if self.deferrable and (ti := context.get("ti")):
            # Asked again after each deferral, the function might say something else, which would be paid for again.
            ti.xcom_push(key=_REQUESTS_KEY, value=self.requests)

    def _check_returned(self) -> None:
        name = self.custom_operator_name
        refuse_none(self.requests, name, "a list of prompts or of dicts of submit arguments, or its s3:// URI")
        for entry in self.requests if isinstance(self.requests, list) else ():
            if isinstance(entry, Mapping):
                refuse_operator_arguments(entry, GptImgBatchToS3Operator, name)

    def execute_complete(  # type: ignore[override]
        self, context: Context, event: Any = None, *, pace: dict[str, Any] | None = None, digest: str | None = None
    ) -> Any:
        """Go on with the same requests after the trigger has fired.

        :raises GptImgError: As :meth:`GptImgBatchToS3Operator.execute`.
        """
        ti = context["ti"]
        self.requests = ti.xcom_pull(task_ids=ti.task_id, key=_REQUESTS_KEY, map_indexes=ti.map_index)
        return super().execute_complete(context, event, pace=pace, digest=digest)


def gptimg_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a list of prompts or of dicts of submit arguments, or its `s3://` URI.

    The task's XCom is the summary of :class:`.GptImgBatchToS3Operator`. What the function returns is not rendered as
    Jinja. What it returns at a retry that it did not return before is submitted, and paid for: keep it deterministic.

    :param python_callable: The function.
    :param kwargs: Arguments of :class:`.GptImgBatchToS3Operator`.
    """
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_GptImgBatchDecoratedOperator, **kwargs
    )
