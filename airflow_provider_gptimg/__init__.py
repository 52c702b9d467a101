"""Apache Airflow provider for the gpt-image-2 API."""

from __future__ import annotations

__version__ = "0.1.0"
