# SPDX-License-Identifier: Apache-2.0
"""What a submit may ask for, what it looks like on the wire, and when two of them are the same."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.requests import ImageRequest, check_on_unknown_submission
from airflow_provider_gptimg.api.s3_uri import split_s3_uri
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError

PNG = "data:image/png;base64,iVBORw0KGgo="
DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        pytest.param({"n": 1}, "n", 1, id="n"),
        pytest.param({"n": 4}, "n", 4, id="n-most"),
        pytest.param({"n": "3"}, "n", 3, id="n-as-rendered"),
        pytest.param({"n": " 2\n"}, "n", 2, id="n-rendered-with-white-space"),
        pytest.param({"n": 2.0}, "n", 2, id="n-as-tables-have-it"),
        pytest.param({"n": "2.0"}, "n", 2, id="n-as-tables-write-it"),
        pytest.param({"n": None}, "n", 1, id="n-missing"),
        pytest.param({"n": float("nan")}, "n", 1, id="n-missing-in-a-table"),
        pytest.param({"n": ""}, "n", 1, id="n-rendered-to-nothing"),
        pytest.param({"aspect_ratio": None}, "aspect_ratio", None, id="ratio-left-to-the-api"),
        pytest.param({"aspect_ratio": "16:9"}, "aspect_ratio", "16:9", id="ratio"),
        pytest.param({"aspect_ratio": "1024:1"}, "aspect_ratio", "1024:1", id="ratio-of-any-numbers"),
        pytest.param({"reference_images": None}, "reference_images", (), id="no-references"),
        pytest.param({"reference_images": []}, "reference_images", (), id="empty-references"),
        pytest.param({"reference_images": "https://a.example/x.png"}, "reference_images", ("https://a.example/x.png",)),
        pytest.param({"reference_images": ("s3://b/a b.png",)}, "reference_images", ("s3://b/a b.png",)),
        pytest.param({"reference_images": [PNG]}, "reference_images", (PNG,), id="data-url"),
        pytest.param(
            {"reference_images": ["HTTPS://A.example/x"] * 4}, "reference_images", ("HTTPS://A.example/x",) * 4
        ),
        pytest.param({"extra_body": {"seed": 7}}, "extra_body", {"seed": 7}, id="extra-body"),
    ],
)
def test_accepts(arguments, field, value):
    assert getattr(ImageRequest.check("a cat", **arguments), field) == value


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param({"prompt": ""}, "prompt", id="prompt-empty"),
        pytest.param({"prompt": " \n\t"}, "prompt", id="prompt-blank"),
        pytest.param({"prompt": None}, "prompt", id="prompt-none"),
        pytest.param({"prompt": 7}, "prompt", id="prompt-number"),
        pytest.param({"prompt": b"a cat"}, "prompt", id="prompt-bytes"),
        pytest.param({"prompt": "a \ud800 cat"}, "prompt", id="prompt-lone-surrogate"),
        *(
            pytest.param({"n": n}, "n=", id=f"n-{n!r:.20}")
            for n in (0, 5, -1, True, 2.5, math.inf, "0", "5", "5.0", "1.5", "-1", "+1", "two", "٣", "1e0", [1], 10**30)
        ),
        *(
            pytest.param({"aspect_ratio": ratio}, "aspect_ratio", id=f"ratio-{ratio!r:.20}")
            for ratio in (
                "1",
                "1:",
                ":1",
                "0:1",
                "1:0",
                "1:1:1",
                "1.5:1",
                "-1:1",
                "16x9",
                " 1:1",
                "1:1\n",
                "١:١",
                1,
            )
        ),
        *(
            pytest.param({"reference_images": [reference]}, "reference_images[0]", id=f"reference-{reference!r:.30}")
            for reference in (
                "",
                "http://a.example/x.png",
                "https://",
                "https:///x.png",
                "https:a.example",
                "https://a.example/x y",
                "ftp://a.example/x",
                "file:///etc/passwd",
                "data:text/html,x",
                "data:image/png;base64",
                "s3://",
                "s3://bucket",
                "s3://bucket/",
                "s3:///key",
                "s3://bucket/key ",
                "s3://bucket/key\n",
                "https://a.example/\ud800",
                "cat.png",
                None,
                7,
                ["https://a.example/x.png"],
            )
        ),
        pytest.param({"reference_images": ["https://a.example/x"] * 5}, "at most 4", id="references-5"),
        pytest.param({"reference_images": 7}, "reference_images", id="references-number"),
        pytest.param({"reference_images": {"https://a.example/x"}}, "reference_images", id="references-set"),
        pytest.param({"extra_body": []}, "extra_body", id="extra-list"),
        pytest.param({"extra_body": "{}"}, "extra_body", id="extra-text"),
        pytest.param({"extra_body": {1: 2}}, "extra_body", id="extra-number-as-name"),
        pytest.param({"extra_body": {"a": object()}}, "extra_body", id="extra-no-json"),
        pytest.param({"extra_body": {"a": float("nan")}}, "extra_body", id="extra-nan"),
        pytest.param({"extra_body": {"a": "\ud800"}}, "extra_body", id="extra-lone-surrogate"),
        pytest.param({"extra_body": {"\ud800": 1}}, "extra_body", id="extra-lone-surrogate-as-name"),
        pytest.param({"extra_body": {"a": {1: 1, "b": 2}}}, "extra_body", id="extra-mixed-names-below"),
        pytest.param({"extra_body": {"a": DEEP}}, "extra_body", id="extra-too-deep"),
        *(
            pytest.param(arguments, "NUL", id=f"nul-{number}")
            for number, arguments in enumerate(
                (
                    {"prompt": "a\0cat"},
                    {"reference_images": ["data:image/png;x\0,AAAA"]},
                    {"reference_images": ["s3://bucket/a\0"]},
                    {"extra_body": {"a": [{"b": "\0"}]}},
                    {"extra_body": {"a\0": 1}},
                )
            )
        ),
        pytest.param({"prompt": "None"}, "template", id="prompt-none"),
        pytest.param({"prompt": " None\n"}, "template", id="prompt-none-with-spaces"),
    ],
)
def test_refuses_before_anything_is_sent(arguments, named):
    with pytest.raises(GptImgRequestError) as refusal:
        ImageRequest.check(**{"prompt": "a cat", **arguments})
    assert named in str(refusal.value)


@pytest.mark.parametrize("missing", ["", " ", None, float("nan")], ids=repr)
@pytest.mark.parametrize("name", ["aspect_ratio", "n", "reference_images", "extra_body"])
def test_an_optional_argument_that_renders_to_nothing_is_not_given(name, missing):
    assert ImageRequest.check("a cat", **{name: missing}) == ImageRequest.check("a cat")


def test_a_prompt_may_speak_of_none():
    assert ImageRequest.check("None of the cats").prompt == "None of the cats"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
references = st.text(st.characters(exclude_categories=()), max_size=12).flatmap(
    lambda rest: st.sampled_from(["https://", "s3://", "s3://b/", "data:image/png,", "http:", ""]).map(
        lambda s: s + rest
    )
)


@given(
    prompt=anything | st.text(st.characters(exclude_categories=()), min_size=1),
    aspect_ratio=st.none() | st.just("1:1") | anything,
    n=st.integers(-1, 6) | anything,
    reference_images=st.none() | st.lists(references, max_size=5) | anything,
    extra_body=st.none()
    | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=3), anything)
    | anything,
)
def test_what_is_not_refused_can_be_sent_and_recognized(**arguments):
    try:
        request = ImageRequest.check(**arguments)
        body = request.body()
    except GptImgError:
        return
    # What httpx does with it.
    sent = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    assert json.loads(sent)["n"] == request.n in (1, 2, 3, 4)
    assert request.credits == 2 * request.n
    assert request.fingerprint("c") == ImageRequest.check(**arguments).fingerprint("c")


def test_the_body_names_only_what_was_asked_for():
    assert ImageRequest.check("a cat").body() == {"prompt": "a cat", "n": 1}


def test_the_body_has_every_argument_in_its_field():
    request = ImageRequest.check(
        "a cat", aspect_ratio="16:9", n="2", reference_images=["https://a.example/x"], extra_body={"seed": [7]}
    )
    assert request.body("refs") == {
        "prompt": "a cat",
        "aspect_ratio": "16:9",
        "n": 2,
        "refs": ["https://a.example/x"],
        "seed": [7],
    }


@pytest.mark.parametrize("name", ["prompt", "n", "aspect_ratio", "image_urls"])
def test_extra_body_cannot_change_what_was_checked(name):
    request = ImageRequest.check("a cat", reference_images=["https://a.example/x"], extra_body={name: 4})
    with pytest.raises(GptImgRequestError, match=name):
        request.body()


def test_references_may_stand_in_extra_body_instead():
    assert ImageRequest.check("a cat", extra_body={"image_urls": ["x"]}).body()["image_urls"] == ["x"]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_costs_two_credits_an_image(n):
    assert ImageRequest.check("a cat", n=n).credits == 2 * n


FULL: dict[str, Any] = {
    "prompt": "a cat",
    "aspect_ratio": "1:1",
    "n": 2,
    "reference_images": ["s3://b/1", "s3://b/2"],
    "extra_body": {"a": 1, "b": 2},
}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a cat "},
        {"aspect_ratio": "2:2"},
        {"aspect_ratio": None},
        {"n": 3},
        {"reference_images": ["s3://b/2", "s3://b/1"]},
        {"reference_images": None},
        {"extra_body": {"a": 1}},
        {"extra_body": None},
    ],
    ids=str,
)
def test_another_request_has_another_fingerprint(change):
    assert ImageRequest.check(**FULL | change).fingerprint("c") != ImageRequest.check(**FULL).fingerprint("c")


@pytest.mark.parametrize(
    "same",
    [{"n": "2"}, {"extra_body": {"b": 2, "a": 1}}, {"reference_images": ("s3://b/1", "s3://b/2")}],
    ids=str,
)
def test_the_same_request_written_otherwise_has_the_same_fingerprint(same):
    assert ImageRequest.check(**FULL | same).fingerprint("c") == ImageRequest.check(**FULL).fingerprint("c")


def test_another_connection_makes_another_request():
    request = ImageRequest.check(**FULL)
    assert request.fingerprint("one") != request.fingerprint("two")


def test_the_fingerprint_is_the_same_in_the_next_release():
    """Records outlive an upgrade: another fingerprint would pay for each pending task again."""
    assert ImageRequest.check(**FULL).fingerprint("gptimg_default") == (
        "88a6d9a4ddcd7f8847973298b902647db98430e93d3181bcde88c671ae81ad8a"
    )


@pytest.mark.parametrize(
    ("uri", "parts"),
    [("s3://b/k", ("b", "k")), ("s3://b/a/b?c#d", ("b", "a/b?c#d")), ("s3://b", ("b", "")), ("s3:///k", ("", "k"))],
)
def test_splits_an_s3_uri(uri, parts):
    assert split_s3_uri(uri) == parts


@pytest.mark.parametrize("policy", ["", " ", float("nan")])
def test_a_blank_policy_is_none(policy):
    assert check_on_unknown_submission(policy) is None


@pytest.mark.parametrize("policy", ["fail", "resubmit", None])
def test_knows_what_to_do_with_an_unknown_submission(policy):
    assert check_on_unknown_submission(policy) == policy


@pytest.mark.parametrize("policy", ["FAIL", "retry", True, 0, ["fail"]])
def test_refuses_another_policy(policy):
    with pytest.raises(GptImgRequestError, match="on_unknown_submission"):
        check_on_unknown_submission(policy)
