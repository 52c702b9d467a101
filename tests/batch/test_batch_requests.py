# SPDX-License-Identifier: Apache-2.0
"""What a batch may be asked for, and how it says what is wrong with it."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

import pytest
from batch_instance import Instance, batch

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.batch.requests import read_requests
from airflow_provider_gptimg.exceptions import GptImgRequestError


def read(requests: Any, text: str = "") -> list[ImageRequest]:
    return [asked.request for asked in read_requests(requests, lambda bucket, key: text)]


CHAIR = ImageRequest("A chair, oak", "4:3", 2, ("https://example.com/a.png", "s3://bucket/b.png"), {"seed": 7})
LAMP = ImageRequest("A lamp")


@pytest.mark.parametrize(
    "requests",
    [
        ["A lamp"],
        ("A lamp",),
        [{"prompt": "A lamp"}],
        [{"prompt": "A lamp", "n": "1"}],
        (prompt for prompt in ["A lamp"]),
    ],
    ids=["list", "tuple", "dict", "n as text", "generator"],
)
def test_reads_lists(requests: Any) -> None:
    assert read(requests) == [LAMP]


CSV = """prompt,aspect_ratio,n,reference_images,extra_body
"A chair, oak",4:3,2,https://example.com/a.png s3://bucket/b.png,"{""seed"": 7}"

A lamp,,,,
"""
JSON_LINES = """
{"prompt": "A chair, oak", "aspect_ratio": "4:3", "n": 2, "extra_body": {"seed": 7}, "reference_images": [REFERENCES]}

"A lamp"
""".replace("REFERENCES", '"https://example.com/a.png", "s3://bucket/b.png"')


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("requests.csv", CSV),
        ("REQUESTS.CSV", CSV.replace("\n", "\r\n")),
        ("requests.jsonl", JSON_LINES),
        ("requests", JSON_LINES.replace("\n", "\r\n")),
    ],
)
def test_reads_objects(key: str, text: str) -> None:
    assert read(f"s3://bucket/{key}", text) == [CHAIR, LAMP]


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([{"prompt": "x", "on_unknown_submission": "resubmit"}, {"prompt": "y", "on_unknown_submission": None}], ""),
        ("s3://b/k.csv", "on_unknown_submission,prompt\nresubmit,x\n,y"),
        ("s3://b/k.jsonl", '{"prompt": "x", "on_unknown_submission": "resubmit"}\n"y"'),
    ],
    ids=["list", "CSV", "JSON Lines"],
)
def test_a_request_may_say_what_an_unknown_outcome_means(requests: Any, text: str) -> None:
    asked = read_requests(requests, lambda bucket, key: text)
    assert [each.on_unknown for each in asked] == ["resubmit", None]


A, B = "https://example.com/a.png", "s3://bucket/b.png"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("cell", "references"),
    [
        (f"{A};{B}", (A, B)),
        (f"{A}, {B}", (A, B)),
        (f" {A} ;\n{B}; ", (A, B)),
        (f"{A},{PIXEL};{B}", (A, PIXEL, B)),
        (f"{PIXEL} {PIXEL}", (PIXEL, PIXEL)),
    ],
)
def test_a_cell_holds_references_separated_as_tables_do(cell: str, references: tuple[str, ...]) -> None:
    """Else two would be sent, and paid for, as one."""
    (request,) = read("s3://b/k.csv", f'prompt,reference_images\nA lamp,"{cell}"')
    assert request.reference_images == references


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("k.jsonl", '{"prompt": "A lamp", "n": null, "aspect_ratio": null, "reference_images": NaN, "extra_body": ""}'),
        ("k.jsonl", '{"prompt": "A lamp", "n": 1.0}'),
        ("k.csv", "prompt,n\nA lamp,1.0"),
        ("k.csv", "prompt,n,aspect_ratio\nA lamp,,"),
    ],
)
def test_reads_numbers_and_missing_values_as_tables_write_them(key: str, text: str) -> None:
    assert read(f"s3://b/{key}", text) == [LAMP]


@pytest.mark.parametrize(
    ("key", "part"), [("k.csv", "prompt,n\nA lamp,1\n"), ("k.csv.gz", "prompt\nA lamp\n"), ("k", '"A lamp"\n')]
)
def test_reads_files_that_were_joined(key: str, part: str) -> None:
    assert read(f"s3://b/{key}", part + "\ufeff" + part + part) == [LAMP] * 3


@pytest.mark.parametrize("blank", [",", " ,\t", ",,,"])
def test_rows_of_empty_cells_are_no_requests(blank: str) -> None:
    """As spreadsheets leave them behind."""
    assert read("s3://b/k.csv", f"prompt,n\n{blank}\nA lamp,1\n{blank}\n") == [LAMP]


def test_a_cell_may_hold_an_image() -> None:
    usual_limit = csv.field_size_limit()
    image = f"data:image/png;base64,{'A' * 1_000_000}"
    (request,) = read("s3://b/k.csv", f'prompt,reference_images\nA lamp,"{image} {image}"')
    assert request.reference_images == (image, image)
    assert csv.field_size_limit() == usual_limit


def test_a_line_may_hold_any_line_break_that_json_allows() -> None:
    prompt = "one\u2028two\x85three"
    assert read("s3://b/k", json.dumps(prompt, ensure_ascii=False)) == [ImageRequest(prompt)]


@pytest.mark.parametrize(
    ("requests", "text", "complaint"),
    [
        (["x", " "], "", "requests[1]: prompt"),
        (["x", "\u200b\u2060 \ufeff"], "", "requests[1]: prompt"),
        (["x", {"prompt": float("nan")}], "", "requests[1]: prompt"),
        (["x", {"prompt": "y", "n": 1.5}], "", "requests[1]: n=1.5"),
        ("s3://b/k.csv", f'prompt,reference_images\nx,"{A},b.png"', "has 'b.png' in it, which is not a reference"),
        ("s3://b/k.csv", "prompt,reference_images\nx,s3://b/my photo.png", "has 'photo.png' in it"),
        (["x", {"prompt": "y", "n": 9}], "", "requests[1]: n=9"),
        (["x", {"prompt": "y", "size": 9}], "", "requests[1]: 'size' is not an argument of a request: use prompt, "),
        ([{"promt": "y"}], "", "requests[0]: 'promt' is not an argument of a request: did you mean 'prompt'?"),
        ([{"n": 1}], "", "requests[0]: prompt is missing or empty"),
        ("s3://b/k.csv", "Prompt,n\nx,1", ". Rename the column 'Prompt' to 'prompt'"),
        (
            "s3://b/k.csv",
            "prompt,aspct_ratio\nx,1:1\ny,1:1",
            "line 1 of s3://b/k.csv: 'aspct_ratio' is not a column of a batch: did you mean 'aspect_ratio'?",
        ),
        (
            "s3://b/k.csv",
            "prompt,sku,name,aspct_ratio\nx,1,y,1:1",
            "'aspct_ratio' is not a column of a batch: did you mean 'aspect_ratio'? Not known either: 'name', 'sku'",
        ),
        ("s3://b/k.csv", "prompt,a,b,c,d,e,f,g\nx", ". Not known either: 'b', 'c', 'd', 'e', 'f', …"),
        ("s3://b/k.csv", "prompt,\nx,7", "line 2 of s3://b/k.csv has '7' in a column that line 1 does not name"),
        ("s3://b/k.csv", "prompt;n\nx;1", "line 1 of s3://b/k.csv is separated by semicolons: save the file with comm"),
        ("s3://b/k.csv", '"prompt";"n"\n"x";1', "line 1 of s3://b/k.csv is separated by semicolons"),
        ("s3://b/k.csv", "prompt\tn\nx\t1", "line 1 of s3://b/k.csv is separated by tabs"),
        ("s3://b/k.csv", "prompt,aspect_ratio,n\nA cat, asleep,1", "If a text has commas in it, put it into quotes"),
        (
            "s3://b/k.csv",
            "prompt,reference_images,n\nA cat, asleep,s3://b/k.png,",
            "not a reference. If a text has commas in it, put it into quotes",
        ),
        (
            "s3://b/k.csv",
            "prompt,reference_images\nA cat,asleep,\n",
            "not a reference. If a text has commas in it, put it into quotes",
        ),
        ([{"prompt": "y", "extra_body": {"n": 4}}], "", "requests[0]: extra_body sets 'n'"),
        (["x", {"prompt": "y", "on_unknown_submission": "guess"}], "", "requests[1]: on_unknown_submission='guess'"),
        ([5], "", "requests[0]: prompt"),
        ([""] * 9, "", "8 more are wrong: requests[1], requests[2], requests[3], requests[4], requests[5], …"),
        ("a prompt", "", "requests='a prompt' is neither a list nor"),
        ("s3://bucket", "", "requests='s3://bucket' is neither"),
        ({"prompt": "x"}, "", "is not a list"),
        (None, "", "requests=None is not a list"),
        ("s3://b/k.jsonl", '"x"\n\n{"prompt": 5}', "line 3 of s3://b/k.jsonl: prompt"),
        ("s3://b/k.jsonl", '"x"\nprompt', "line 2 of s3://b/k.jsonl is not JSON"),
        ("s3://b/k.jsonl", "[" * 100_000, "line 1 of s3://b/k.jsonl is not JSON"),
        ("s3://b/k.csv", "text\nx", "line 1 of s3://b/k.csv is not a header"),
        ("s3://b/k.csv", "prompt,n,prompt\nx,1,y", "line 1 of s3://b/k.csv names 'prompt' twice"),
        ("s3://b/k.csv", "", "line 1 of s3://b/k.csv is not a header"),
        ("s3://b/k.csv", "prompt,n\nx,many", "line 2 of s3://b/k.csv: n='many'"),
        (
            "s3://b/k.csv",
            "prompt,n\nx,1,2",
            "line 2 of s3://b/k.csv has more cells than the header. If a text has comm",
        ),
        ("s3://b/k.csv", "prompt,on_unknown_submission\nx,No", "line 2 of s3://b/k.csv: on_unknown_submission='No'"),
        ("s3://b/k.csv", "prompt,n\n,3", "line 2 of s3://b/k.csv: prompt is missing or empty: say what"),
        ("s3://b/k.csv", "prompt,extra_body\nx,{", "line 2 of s3://b/k.csv: extra_body is not JSON"),
        ("s3://b/k.csv", 'prompt\n"x', "is not CSV"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_names_what_is_wrong(requests: Any, text: str, complaint: str) -> None:
    with pytest.raises(GptImgRequestError) as caught:
        read(requests, text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("requests", "text", "named"),
    [
        (["x", "a cat KEY"], "", "requests[1]"),
        (["x", {"prompt": "y", "n": "KEY"}], "", "requests[1]"),
        (["x", {"prompt": "y", "extra_body": {"a": [{"KEY": 1}]}}], "", "requests[1]"),
        (["x", {"prompt": "y", "KEY": 1}], "", "requests[1]"),
        ("KEY", "", "A text of the request"),
        ("s3://images/r.csv", "prompt,n\nx,1\ny,KEY", "line 3 of s3://images/r.csv"),
        ("s3://images/r.csv", "prompt,reference_images\nx,KEY", "line 2 of s3://images/r.csv"),
        ("s3://images/r.csv", "prompt,KEY\nx,1", "line 1 of s3://images/r.csv"),
        ("s3://images/r.jsonl", '"x"\n{"prompt": "y", "KEY": 1}', "line 2 of s3://images/r.jsonl"),
    ],
    ids=str,
)
def test_the_key_in_one_request_keeps_all_from_being_sent(
    emulator: Any, instance: Instance, s3: Any, requests: Any, text: str, named: str
) -> None:
    key = emulator.api_key
    if text:
        s3.put_object(Bucket="images", Key=requests.removeprefix("s3://images/"), Body=text.replace("KEY", key))
    with pytest.raises(AirflowFailException) as caught:
        instance.run(batch(json.loads(json.dumps(requests).replace("KEY", key))))
    assert named in str(caught.value)
    assert "holds the API key of connection 'gptimg_default'" in str(caught.value)
    assert key not in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize(("key", "body"), [("r.csv", CSV.encode("utf-8-sig")), ("r.jsonl", JSON_LINES.encode())])
def test_a_batch_reads_its_requests_from_s3(emulator: Any, instance: Instance, s3: Any, key: str, body: bytes) -> None:
    s3.put_object(Bucket="images", Key=key, Body=body)

    assert instance.run(batch(f"s3://images/{key}"))["images"] == 3
    assert sorted(task.prompt for task in emulator.tasks) == ["A chair, oak", "A lamp"]


@pytest.mark.parametrize(
    ("uri", "body", "complaint"),
    [
        (
            "s3://images/none.jsonl",
            None,
            "requests='s3://images/none.jsonl' cannot be read with aws_conn_id='aws_default': the bucket has no such "
            "object. Correct the URI, or the AWS connection. Nothing was sent",
        ),
        (
            "s3://nowhere/r.jsonl",
            None,
            "requests='s3://nowhere/r.jsonl' cannot be read with aws_conn_id='aws_default': the bucket does not exist. "
            "Correct the URI, or the AWS connection. Nothing was sent",
        ),
        (
            "s3://images/r.csv",
            "prompt\nUn café".encode("cp1252"),
            "line 2 of s3://images/r.csv is not text in UTF-8: save the file as UTF-8 (Excel: 'CSV UTF-8'). "
            "Nothing was sent",
        ),
        ("s3://images/r.csv", b"prompt\n,3", "Nothing was sent"),
    ],
)
def test_an_object_that_cannot_be_read_is_named(
    emulator: Any, instance: Instance, s3: Any, uri: str, body: bytes | None, complaint: str
) -> None:
    if body is not None:
        s3.put_object(Bucket="images", Key="r.csv", Body=body)
    with pytest.raises(AirflowFailException, match=re.escape(complaint)):
        instance.run(batch(uri))
    assert not emulator.calls


def test_an_aws_connection_that_does_not_exist_is_named_at_once(
    emulator: Any, instance: Instance, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(AirflowFailException) as caught:
        instance.run(batch("s3://images/r.csv", aws_conn_id="aws_defualt"))
    assert str(caught.value) == (
        "requests='s3://images/r.csv' cannot be read with aws_conn_id='aws_defualt': Unable to locate credentials. "
        "No connection has that id. Correct the URI, or the AWS connection. Nothing was sent"
    )
    assert not emulator.calls
