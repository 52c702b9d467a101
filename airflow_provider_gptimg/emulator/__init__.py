# SPDX-License-Identifier: Apache-2.0
"""A local stand-in for the gpt-image-2 API: try and test DAGs without spending credits.

In tests, the pytest fixture `gptimg_emulator` runs it. In other code, `speed=100` makes a generation take about half a
second::

    with Emulator(speed=100) as emulator:
        os.environ["AIRFLOW_CONN_GPTIMG_DEFAULT"] = emulator.connection_json

From a shell: `python -m airflow_provider_gptimg.emulator --speed 10`; `--help` lists the options.

Faults
------
`emulator.fault(on, what, times=1, **options)` lets the next calls of one kind go wrong: `submit`, `poll`,
`image`, or `any` of them. `what` is an HTTP status from 400 to 599, answered with the API's error envelope, or a name.

===============  ===========================================================  =================================
what             the client sees                                              options
===============  ===========================================================  =================================
``429`` …        an error of the API; the request is not processed            code, message, retry_after,
                                                                              request_id, envelope
``html``         a proxy's page                                               status=502
``empty``        no body                                                      status=200
``redirect``     another location                                             location, status=302
``body``         whatever you say                                             body, status=200, content_type,
                                                                              headers
``lost_before``  no answer, and the request was not processed
``lost_after``   no answer, but the request was processed: a submit is paid
``cut_after``    half an answer; the request was processed
``hang_before``  nothing until `release()`, which lets it be processed        seconds=None
``hang_after``   nothing until `release()`; the request was processed         seconds=None
``fail``         on `submit`: accepted, then failed and refunded              error
``short``        on `image`: half of the bytes its length promises
``long_length``  on `image`: all bytes, but a longer length (+ 1)             length
``stall``        on `image`: half of it, the rest after `release()`           seconds=None
``endless``      on `image`: chunks without end
``wrong_type``   on `image`: a page that is declared to be a PNG
``gone``         on `image`: 404
===============  ===========================================================  =================================

`envelope` says where an error has its code and request id: `nested` (in `error`, and in the body), `flat` (both at the
body's top), `header` (the id in `x-request-id` only). By default they are nested, with the id in the header too.

Over HTTP
---------
When the emulator runs in another process, without a key: GET `/_emulator/ledger`, `/_emulator/tasks` and
`/_emulator/calls` (keys are masked); POST `/_emulator/faults` with the arguments of `fault()` as a JSON object, DELETE
to clear them; POST `/_emulator/release` and `/_emulator/reset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator.emulator import Emulator

__all__ = ["Emulator"]

_PACKAGES = {"aiohttp": "aiohttp", "PIL": "Pillow"}


def __getattr__(name: str) -> Any:
    """Import `Emulator` at its first use, so that a package that it lacks can be reported in one line.

    :raises ImportError: Names the missing package and the command that installs it.
    """
    if name != "Emulator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from airflow_provider_gptimg.emulator.emulator import Emulator
    except ModuleNotFoundError as missing:
        if missing.name not in _PACKAGES:
            raise
        raise ImportError(
            f"The emulator needs {_PACKAGES[missing.name]}: pip install 'airflow-provider-gptimg[emulator]'",
            name=missing.name,
        ) from None
    return Emulator
