# SPDX-License-Identifier: Apache-2.0
"""The TaskFlow decorator `@task.gptimg`: a function returns what to submit, the task returns the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_gptimg.airflow_compat import TaskDecorator, task_decorator_factory
from airflow_provider_gptimg.decorators.functions import FunctionOperator, refuse_none, refuse_operator_arguments
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.verdicts import airflow_verdict

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["gptimg_task"]


class _GptImgDecoratedOperator(FunctionOperator, GptImgGenerateOperator):
    """Generate images of what a function returns, and return the finished task (dict)."""

    # Without the prompt: what the function returns may hold foreign text, which must not be rendered.
    template_fields: Sequence[str] = (
        *FunctionOperator.template_fields,
        *(name for name in GptImgGenerateOperator.template_fields if name != "prompt"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **FunctionOperator.template_fields_renderers,
        **GptImgGenerateOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.gptimg"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(prompt="", **kwargs)  # the function says it

    def execute(self, context: Context) -> Any:
        """Call the function, submit what it returns, and return the finished task.

        :raises GptImgError: As :meth:`GptImgGenerateOperator.execute`.
        """
        with airflow_verdict():
            self._take(self.call_function(context))
        # Past DecoratedOperator, which would split the result by `multiple_outputs`, and fails at that on Airflow 3.0.
        return GptImgGenerateOperator.execute(self, context)

    def _take(self, returned: Any) -> None:
        from airflow_provider_gptimg.api.requests import check_names

        self._hook().settings.refuse_key(returned)  # before an error can show it
        function = f"the function of {self.custom_operator_name}"
        refuse_none(returned, self.custom_operator_name, "a prompt, or a dict of submit arguments")
        if isinstance(returned, list | tuple):
            raise GptImgRequestError(
                f"{function} returned a list, and makes one request: map it over the values with .expand(), or use "
                "@task.gptimg_batch"
            )
        arguments = returned if isinstance(returned, Mapping) else {"prompt": returned}
        refuse_operator_arguments(arguments, GptImgGenerateOperator, self.custom_operator_name)
        check_names(arguments, f"a submit argument, and {function} returned it")
        if "prompt" not in arguments:
            raise GptImgRequestError(f"the dict that {function} returned has no 'prompt'")
        for name, value in arguments.items():
            setattr(self, name, value)


def gptimg_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a prompt, or a dict of submit arguments.

    The task's XCom is the finished task (dict). What the function returns is not rendered as Jinja. If it returns
    something else at a retry, that is a changed request, which is submitted and paid for again: keep it deterministic.

    :param python_callable: The function.
    :param kwargs: Arguments of :class:`.GptImgGenerateOperator`; the function's dict wins over them.
    """
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_GptImgDecoratedOperator, **kwargs
    )
