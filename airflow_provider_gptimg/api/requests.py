# SPDX-License-Identifier: Apache-2.0
"""Check a submit request before it is sent, and recognize it when it is asked for again."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE, MAX_IMAGES
from airflow_provider_gptimg.api.texts import nearest, texts_of, unsendable
from airflow_provider_gptimg.exceptions import GptImgRequestError

__all__ = [
    "MAX_IMAGES",
    "MAX_REFERENCES",
    "SUBMIT_ARGUMENTS",
    "ImageRequest",
    "check_max_credits",
    "check_names",
    "check_on_unknown_submission",
]

MAX_REFERENCES = 4

_ASPECT_RATIO = re.compile(r"[1-9][0-9]{0,4}:[1-9][0-9]{0,4}")
_ON_UNKNOWN_SUBMISSION = ("fail", "resubmit")
_SHOWN = 5

SUBMIT_ARGUMENTS = ("prompt", "aspect_ratio", "n", "reference_images", "extra_body", "on_unknown_submission")
"""Arguments that one request may say for itself: of a batch, or returned by a decorated function."""


def check_names(names: Iterable[object], what: str = "an argument of a request") -> None:
    """Refuse names that no submit argument has.

    :param what: They should be, for the message.
    :raises GptImgRequestError: Names them, and what the first one probably means.
    """
    if unknown := sorted(str(name) for name in names if name not in SUBMIT_ARGUMENTS):
        near = nearest(unknown[0], SUBMIT_ARGUMENTS)
        hint = f"did you mean {near!r}?" if near else f"use {', '.join(SUBMIT_ARGUMENTS)}"
        error = GptImgRequestError(f"{unknown[0]!r:.80} is not {what}: {hint}")
        if others := unknown[1:]:
            more = ", …" if len(others) > _SHOWN else ""
            error.add_hint(f"Not known either: {', '.join(f'{name!r:.80}' for name in others[:_SHOWN])}{more}")
        raise error


def check_on_unknown_submission(policy: object) -> str | None:
    """Return `policy` if it is `fail` or `resubmit`; None if it is None or blank.

    :raises GptImgRequestError: It is something else.
    """
    if _is_missing(policy):
        return None
    if policy in _ON_UNKNOWN_SUBMISSION:
        return policy
    raise GptImgRequestError(
        f"on_unknown_submission={policy!r} is not known: use 'fail' (a person decides whether to submit again) "
        "or 'resubmit' (the next attempt submits, and may pay twice)"
    )


def check_max_credits(max_credits: object, credits: int, what: str = "this request") -> None:
    """Refuse a request that would cost more than its author allowed.

    :param max_credits: A whole number, also as text, as a template renders it; None: no limit.
    :param credits: What it would cost.
    :raises GptImgRequestError: It would cost more, or `max_credits` is not such a number.
    """
    if max_credits is None:
        return
    limit = max_credits
    if isinstance(limit, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", limit, re.ASCII):
        limit = int(limit)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise GptImgRequestError(f"max_credits={max_credits!r:.80} is not a whole number of credits, such as 100")
    if credits > limit:
        raise GptImgRequestError(
            f"max_credits={limit} refuses {what}: it would cost {credits} credits, {CREDITS_PER_IMAGE} an image. "
            "Nothing was sent; ask for fewer images, or raise max_credits"
        )


@dataclass(frozen=True)
class ImageRequest:
    """A checked submit request. Make one with :meth:`check`.

    :param n: Number of images, 1 to 4.
    :param reference_images: `https://…`, `data:image/…` or `s3://bucket/key`, up to 4.
    :param extra_body: Further fields of the body, passed through untouched.
    """

    prompt: str
    aspect_ratio: str | None = None
    n: int = 1
    reference_images: tuple[str, ...] = ()
    extra_body: Mapping[str, Any] | None = None

    @classmethod
    def check(
        cls,
        prompt: object,
        *,
        aspect_ratio: object = None,
        n: object = 1,
        reference_images: object = None,
        extra_body: object = None,
    ) -> ImageRequest:
        """Check the form of a request, and return it; the API decides the rest.

        :param n: A whole number, also as text or as `2.0`, as templates and tables write it; None, NaN or blank: 1.
        :param reference_images: A list, or one reference as text.
        :raises GptImgRequestError: Names the argument, its value and the way out.
        """
        return cls(
            prompt=_check_prompt(prompt),
            aspect_ratio=_check_aspect_ratio(aspect_ratio),
            n=_check_n(n),
            reference_images=_check_references(reference_images),
            extra_body=_check_extra_body(extra_body),
        )

    @property
    def credits(self) -> int:
        """Credits this request costs when accepted: 2 an image, as documented."""
        return CREDITS_PER_IMAGE * self.n

    def with_references(self, references: Sequence[str]) -> ImageRequest:
        """Return the same request with other reference URLs, e.g. presigned ones."""
        return replace(self, reference_images=tuple(references))

    def body(self, reference_images_field: str = "image_urls") -> dict[str, Any]:
        """Return the JSON body of the submit.

        :param reference_images_field: Name of the reference-image field on the wire (assumed, so configurable).
        :raises GptImgRequestError: `extra_body` sets what has an argument of its own.
        """
        body: dict[str, Any] = {"prompt": self.prompt, "n": self.n}
        if self.aspect_ratio is not None:
            body["aspect_ratio"] = self.aspect_ratio
        if self.reference_images:
            body[reference_images_field] = list(self.reference_images)
        extra = dict(self.extra_body or {})
        # Letting `n` in here would charge other credits than were checked, shown and recorded.
        if clash := sorted(set(extra) & ({"prompt", "n", "aspect_ratio"} | set(body))):
            raise GptImgRequestError(
                f"extra_body sets {clash[0]!r}, which has an argument of its own: "
                "use prompt, n, aspect_ratio or reference_images"
            )
        return body | extra

    def fingerprint(self, conn_id: str) -> str:
        """Return a hash of the request as the author wrote it and of the connection's id.

        A rotated key or a presigned URL does not change it.
        """
        fields = [
            self.prompt,
            self.aspect_ratio,
            self.n,
            list(self.reference_images),
            dict(self.extra_body or {}),
            conn_id,
        ]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _is_missing(value: object) -> bool:
    """True if an optional argument is not given: as it is, as a template renders it, or as tables write it."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_prompt(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise GptImgRequestError(
            f"prompt={prompt!r:.80} is not a text, but of type {type(prompt).__name__}: a request has one prompt, "
            "which says what the images should show"
        )
    if not any(map(_is_visible, prompt)):
        raise GptImgRequestError(
            f"prompt={prompt!r:.80} is blank: say what the images should show. If the prompt comes from a template or "
            "from another task, look there: it gave nothing"
        )
    if prompt.strip() == "None":
        raise GptImgRequestError(
            "prompt='None' is what a template renders that finds nothing: correct the template, or give it a default, "
            "as in {{ params.get('p', 'a cat') }}"
        )
    return _check_text("prompt", prompt)


def _check_text(name: str, text: str) -> str:
    if found := unsendable(text):
        raise GptImgRequestError(f"{name} holds {found}, which cannot be sent and stored: take it out")
    return text


def _is_visible(character: str) -> bool:
    # Not a space, a control character, or one of zero width.
    return unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Zs")


def _check_aspect_ratio(aspect_ratio: object) -> str | None:
    if _is_missing(aspect_ratio):
        return None
    if isinstance(aspect_ratio, str) and _ASPECT_RATIO.fullmatch(aspect_ratio):
        return aspect_ratio
    raise GptImgRequestError(
        f"aspect_ratio={aspect_ratio!r:.80} is not of the form 'W:H' with positive whole numbers, as in '16:9'"
    )


def _check_n(n: object) -> int:
    if _is_missing(n):
        return 1
    number = n
    if isinstance(n, str) and re.fullmatch(r"\s*[0-9]{1,3}(\.0{1,9})?\s*", n, re.ASCII):
        number = float(n)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_IMAGES:
        return number
    raise GptImgRequestError(f"n={n!r:.80} is not a whole number from 1 to {MAX_IMAGES}: that many images a submit")


def _check_references(references: object) -> tuple[str, ...]:
    if _is_missing(references):
        return ()
    if isinstance(references, str):
        references = [references]
    if not isinstance(references, Sequence):
        raise GptImgRequestError(f"reference_images={references!r:.80} is not a list of URLs")
    if len(references) > MAX_REFERENCES:
        raise GptImgRequestError(
            f"reference_images has {len(references)} entries, at most {MAX_REFERENCES} are allowed: leave some out"
        )
    return tuple(_check_reference(position, reference) for position, reference in enumerate(references))


def _check_reference(position: int, reference: object) -> str:
    if isinstance(reference, str):
        _check_text(f"reference_images[{position}]", reference)
        if reference.startswith("s3://"):
            # A key may have spaces in it. One at its end is rather a slip, and so is another kind of space.
            if all(split_s3_uri(reference)) and not re.search(r"[^\S ]|\s$", reference):
                return reference
            raise _no_reference(position, reference)
        if re.search(r"\s", reference):
            raise _no_reference(position, reference)
        scheme = reference.split(":", 1)[0].lower()
        if scheme == "https" and re.match(r"https://[^/?#]+", reference, re.IGNORECASE):
            return reference
        if reference.lower().startswith("data:image/") and "," in reference:
            return reference
    raise _no_reference(position, reference)


def _no_reference(position: int, reference: object) -> GptImgRequestError:
    return GptImgRequestError(
        f"reference_images[{position}]={reference!r:.60} is none of 'https://…', 'data:image/…' and 's3://bucket/key'"
    )


def _check_extra_body(extra_body: object) -> Mapping[str, Any] | None:
    if _is_missing(extra_body):
        return None
    if not isinstance(extra_body, Mapping) or not all(isinstance(name, str) for name in extra_body):
        raise GptImgRequestError(f"extra_body={extra_body!r:.80} is not a dict with text keys")
    try:
        # As it is sent, and as the fingerprint sorts it.
        json.dumps(dict(extra_body), allow_nan=False, ensure_ascii=False, sort_keys=True).encode()
        for text in texts_of(extra_body):
            _check_text("extra_body", text)
    except (TypeError, ValueError, RecursionError) as error:
        raise GptImgRequestError(f"extra_body cannot be written as JSON: {error}") from None
    return extra_body
