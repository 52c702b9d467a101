# SPDX-License-Identifier: Apache-2.0
"""The requests of a batch: a list, or an S3 object with one request a line, checked as a whole."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.requests import ImageRequest, check_names, check_on_unknown_submission
from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.api.texts import nearest
from airflow_provider_gptimg.exceptions import GptImgRequestError

__all__ = ["BatchRequest", "read_requests"]

_SHOWN = 5
_REFERENCE = re.compile(r"data:[^\s,]*,[^\s,;]*|[^\s,;]+", re.IGNORECASE)
"""One of the references in a cell. Spaces, commas and semicolons separate them, and a `data:` URL holds some itself."""

_SEPARATORS = "Spaces, commas and semicolons separate references: write %20, %2C and %3B in a URL, or use JSON Lines"
_QUOTES = "If a text has commas in it, put it into quotes"


@dataclass(frozen=True)
class _Entry:
    """An item of `requests`, unchecked.

    :param hint: Added to an error of this entry.
    """

    name: str
    value: Any
    hint: str = ""


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch.

    :param name: How a person finds it, e.g. `requests[3]` or `line 4 of s3://…`.
    :param on_unknown: Its own `on_unknown_submission`; None: the batch's.
    """

    name: str
    request: ImageRequest
    on_unknown: str | None = None


def read_requests(
    requests: Any,
    read_object: Callable[[str, str], str],
    references_field: str = "image_urls",
    refuse: Callable[[object], None] = lambda value: None,
) -> list[BatchRequest]:
    """Return the requests that an operator's argument `requests` means.

    :param requests: A list of prompts or of dicts of submit arguments, or the `s3://` URI of an object of them:
        CSV with a header if its key ends in `.csv` or `.csv.gz`, else JSON Lines.
    :param read_object: Returns the text of an S3 object, given bucket and key.
    :param references_field: Name of the reference-image field on the wire.
    :param refuse: Raises a GptImgRequestError for what may be neither sent nor shown.
    :raises GptImgRequestError: At least one is wrong; the message names it and its argument.
    """
    if not isinstance(requests, str):
        return _check_all(_list_requests(requests), references_field, refuse)
    refuse(requests)
    if not requests.startswith("s3://") or not all(location := split_s3_uri(requests)):
        raise GptImgRequestError(
            f"requests={requests!r:.120} is neither a list nor 's3://bucket/key' of a CSV or JSON Lines object"
        )
    text = read_object(*location)
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            refuse(line)
        except GptImgRequestError as error:
            raise GptImgRequestError(f"line {number} of {requests}: {error.message}") from None
    parse = _read_csv if requests.lower().endswith((".csv", ".csv.gz")) else _read_json_lines
    return _check_all(parse(text, requests), references_field, refuse)


def _list_requests(requests: Any) -> Iterator[_Entry]:
    if isinstance(requests, (str, Mapping)) or not isinstance(requests, Iterable):
        raise GptImgRequestError(f"requests={requests!r:.120} is not a list of prompts or of dicts of submit arguments")
    for index, entry in enumerate(requests):
        yield _Entry(f"requests[{index}]", entry)


def _check_all(
    entries: Iterable[_Entry], references_field: str, refuse: Callable[[object], None]
) -> list[BatchRequest]:
    """Return all requests if each of them is right; else say what is wrong with the first, and name the others."""
    checked: list[BatchRequest] = []
    wrong: list[tuple[str, GptImgRequestError]] = []
    for entry in entries:
        try:
            refuse(entry.value)
            checked.append(_check(entry, references_field))
        except GptImgRequestError as error:
            if entry.hint:
                error.add_hint(entry.hint)
            wrong.append((entry.name, error))
    if wrong:
        name, first = wrong[0]
        others = [other for other, _ in wrong[1:]]
        told = GptImgRequestError(f"{name}: {first.message}")
        if others:
            more = ", …" if len(others) > _SHOWN else ""
            told.add_hint(f"{len(others)} more are wrong: {', '.join(others[:_SHOWN])}{more}")
        raise told
    return checked


def _check(entry: _Entry, references_field: str) -> BatchRequest:
    arguments = dict(entry.value) if isinstance(entry.value, Mapping) else {"prompt": entry.value}
    check_names(arguments)
    if "prompt" not in arguments:
        raise GptImgRequestError("prompt is missing or empty: say what the images should show")
    on_unknown = check_on_unknown_submission(arguments.pop("on_unknown_submission", None))
    request = ImageRequest.check(arguments.pop("prompt", None), **arguments)
    request.body(references_field)  # refuses an extra_body that sets what has an argument of its own
    return BatchRequest(entry.name, request, on_unknown)


def _read_json_lines(text: str, uri: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # files that were joined keep their byte order marks
        if not line.strip():
            continue
        try:
            yield _Entry(f"line {number} of {uri}", json.loads(line))
        except (ValueError, RecursionError) as error:
            raise GptImgRequestError(
                f"line {number} of {uri} is not JSON: {error}. Each line is a prompt or an object of submit arguments; "
                "for CSV, the key must end in .csv"
            ) from None


def _read_csv(text: str, uri: str) -> Iterator[_Entry]:
    """Read rows under a header of argument names. An empty cell is an argument that is not given."""
    _check_separator(text, uri)
    usual_limit = csv.field_size_limit(sys.maxsize)  # a cell may hold an image as a data: URL
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        _check_header(header, uri)
        for row in reader:
            if all(str(cell).removeprefix("\ufeff") == name for name, cell in row.items()):
                continue  # the header of a file that was joined to this one
            name = f"line {reader.line_num} of {uri}"
            surplus = row.pop(None, ())
            if any(cell.strip() for cell in surplus):
                raise GptImgRequestError(f"{name} has more cells than the header. {_QUOTES}")
            if cells := {column: cell for column, cell in row.items() if cell and cell.strip()}:
                if unnamed := cells.get(""):
                    raise GptImgRequestError(f"{name} has {unnamed!r:.80} in a column that line 1 does not name")
                # A space at the start of a cell, as after a comma in a text, or a cell more: the comma is the prompt's.
                is_shifted = surplus or any(cell[0] == " " for column, cell in cells.items() if column != "prompt")
                hint = _QUOTES if is_shifted else ""
                yield _Entry(name, _read_cells(cells, name, hint), hint)
    except csv.Error as error:
        raise GptImgRequestError(f"line {reader.line_num} of {uri} is not CSV: {error}") from None
    finally:
        csv.field_size_limit(usual_limit)


def _check_separator(text: str, uri: str) -> None:
    header = text.split("\n", 1)[0]
    for separator, plural in ((";", "semicolons"), ("\t", "tabs")):
        if separator in header and "," not in header:
            raise GptImgRequestError(
                f"line 1 of {uri} is separated by {plural}: save the file with commas between the cells"
            )


def _check_header(header: Sequence[str], uri: str) -> None:
    if "prompt" not in header:
        near = nearest("prompt", filter(None, header))
        hint = f". Rename the column {near!r} to 'prompt'" if near else ""
        raise GptImgRequestError(f"line 1 of {uri} is not a header with 'prompt' in it: {list(header)!r:.120}{hint}")
    try:
        check_names(filter(None, header), "a column of a batch")
    except GptImgRequestError as error:
        raise GptImgRequestError(f"line 1 of {uri}: {error.message}") from None
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise GptImgRequestError(f"line 1 of {uri} names {twice[0]!r} twice: which column counts?")


def _read_cells(cells: dict[str, Any], name: str, hint: str) -> dict[str, Any]:
    if references := cells.get("reference_images"):
        cells["reference_images"] = parts = _REFERENCE.findall(references)
        if wrong := [part for part in parts if not part.lower().startswith(("https://", "s3://", "data:image/"))]:
            raise GptImgRequestError(
                f"{name}: reference_images={references!r:.200} has {wrong[0]!r:.60} in it, which is not a reference. "
                f"{hint or _SEPARATORS}"
            )
    if extra_body := cells.get("extra_body"):
        try:
            cells["extra_body"] = json.loads(extra_body)
        except (ValueError, RecursionError) as error:
            raise GptImgRequestError(f"{name}: extra_body is not JSON: {error}{hint and f'. {hint}'}") from None
    return cells
