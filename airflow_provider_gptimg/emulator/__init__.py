# SPDX-License-Identifier: Apache-2.0
"""A local stand-in of the gpt-image-2 API: try and test DAGs without spending credits."""

from __future__ import annotations

try:
    from airflow_provider_gptimg.emulator.emulator import Emulator
except ModuleNotFoundError as error:
    if error.name not in ("aiohttp", "PIL"):
        raise
    raise ImportError(
        f"The emulator needs {error.name}: pip install 'airflow-provider-gptimg[emulator]'", name=error.name
    ) from None

__all__ = ["Emulator"]
