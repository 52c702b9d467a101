# SPDX-License-Identifier: Apache-2.0
"""GptImgToS3Operator against an image host where things go wrong: an object is the image, or is not there."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from attempts import fails_at_once, may_be_retried
from test_to_s3 import JPEG, PNG, WEBP, image_calls, in_bucket, transfer, until

from airflow_provider_gptimg.exceptions import GptImgMediaError, GptImgTaskNotFoundError

MIB = 1024 * 1024


def png_of(size: int) -> bytes:
    """Return a PNG of exactly `size` bytes: what is missing is in a chunk that readers skip."""
    padding = b"teSt" + bytes(size - len(PNG) - 12)
    chunk = struct.pack(">I", len(padding) - 4) + padding + struct.pack(">I", zlib.crc32(padding))
    return PNG[:-12] + chunk + PNG[-12:]


PASSING = [
    "short",
    "long_length",
    "lost_before",
    "lost_after",
    "cut_after",
    "stall",
    "hang_before",
    429,
    500,
    503,
    "html",
]
FINAL = ["wrong_type", "redirect", "empty", 400, 401]


@pytest.fixture
def task_id(emulator) -> str:
    return emulator.add_task(image_bytes=[png_of(100_000)])


class TestFault:
    @pytest.fixture(autouse=True)
    def _soon(self, request, quick, hasty):
        # Short only where a fault lasts until the time is up: else a slow machine would be taken for a fault.
        called = getattr(request.node, "callspec", None)
        if not called or called.params["fault"] in ("long_length", "stall", "hang_before"):
            quick(timeout=0.5)

    @pytest.mark.parametrize("fault", PASSING, ids=str)
    def test_that_passes_is_not_noticed(self, emulator, instance, s3, task_id, fault):
        emulator.fault("image", fault, times=2)
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == emulator.task(task_id).images
        assert len(image_calls(emulator)) == 3

    @pytest.mark.parametrize("fault", PASSING, ids=str)
    def test_that_stays_leaves_nothing_in_the_bucket(self, emulator, instance, s3, task_id, fault, log):
        emulator.fault("image", fault, times=None)
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert f"Image 0 of image task {task_id}" in str(caught.value)
        # The host may not have taken up a call before its time was up.
        assert log().count("trying again in") == 3 >= len(image_calls(emulator)) - 1
        assert in_bucket(s3) == {}

    @pytest.mark.parametrize("fault", FINAL, ids=str)
    def test_that_no_repetition_mends_is_not_repeated(self, emulator, instance, s3, task_id, fault):
        emulator.fault("image", fault, times=None)
        with may_be_retried(GptImgMediaError):
            instance.attempt(transfer(task_id))
        assert len(image_calls(emulator)) == 1
        assert in_bucket(s3) == {}

    def test_of_some_images_keeps_the_others_exact(self, emulator, instance, s3):
        images = [png_of(size) for size in range(20_000, 20_012)]
        task_ids = [emulator.add_task(image_bytes=images[first : first + 4]) for first in (0, 4, 8)]
        for fault in ("short", "stall", 500, "long_length", "lost_after", "cut_after"):
            emulator.fault("image", fault)
        result = instance.attempt(transfer(task_ids))
        assert [in_bucket(s3)[one["key"]] for one in result] == images

    def test_a_redirect_is_not_followed(self, emulator, instance, s3, task_id):
        other = emulator.add_task(image_bytes=[PNG])
        instance.attempt(transfer(other))
        elsewhere = emulator.base_url + image_calls(emulator)[-1].path
        emulator.fault("image", "redirect", location=elsewhere)
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "redirect" in str(caught.value)
        assert len(image_calls(emulator)) == 2

    def test_an_image_that_is_never_finished_ends_at_the_limit(self, emulator, instance, s3, task_id):
        emulator.fault("image", "endless", times=None)
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id, max_image_bytes=MIB))
        assert "max_image_bytes=1048576" in str(caught.value)
        assert len(image_calls(emulator)) == 1
        assert in_bucket(s3) == {}


class Trickle(BaseHTTPRequestHandler):
    """An API whose images come so slowly that each byte is in time, and all of them never are."""

    image_calls = 0

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            url = f"http://{self.headers['Host']}/image.png"
            data = {"task_id": self.path.rpartition("/")[2], "status": "completed", "images": [{"url": url}]}
            body = json.dumps({"success": True, "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        type(self).image_calls += 1
        self.send_response(200)
        self.send_header("Content-Length", str(MIB))
        self.end_headers()
        with suppress(OSError):
            for byte in png_of(MIB):
                self.wfile.write(bytes([byte]))
                time.sleep(0.01)

    def log_message(self, *args: object) -> None:
        pass


def test_an_image_that_trickles_ends(instance, s3, connect, emulator, hasty):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        connect(emulator, host=f"http://127.0.0.1:{server.server_address[1]}", timeout=0.3)
        with may_be_retried(GptImgMediaError):
            instance.attempt(transfer("gpt-image-2-x"))
    finally:
        server.shutdown()
        server.server_close()
    assert Trickle.image_calls == 4
    assert "Contents" not in s3.list_objects_v2(Bucket="images")


class TestGone:
    """The URL does not serve the image any more: the API may know another."""

    @pytest.mark.parametrize("status", [403, 404, 408, 421, 425], ids=str)
    def test_for_a_while_is_waited_out(self, emulator, instance, s3, hasty, task_id, status):
        """A host may serve an image some seconds after the API says that it is there."""
        emulator.fault("image", status, times=4)
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == emulator.task(task_id).images

    @pytest.mark.parametrize("fault", ["gone", 403, 404, 410], ids=str)
    def test_asks_the_api_again(self, emulator, instance, s3, hasty, task_id, fault):
        emulator.fault("image", fault)
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == emulator.task(task_id).images
        assert emulator.task(task_id).polls == 2

    def test_a_finished_task_from_long_ago_gets_its_new_url(self, emulator, instance, s3, task_id):
        old = f"{emulator.base_url}/gpt-image-2-outputs/of-long-ago.png"
        finished = {"task_id": task_id, "status": "completed", "images": [{"url": old, "content_type": "image/png"}]}
        (result,) = instance.attempt(transfer(finished))
        assert list(in_bucket(s3).values()) == emulator.task(task_id).images
        assert result["source_url"] == emulator.base_url + image_calls(emulator)[-1].path

    @pytest.mark.parametrize(("status", "times"), [(404, 5), (403, 5), (425, 5), (410, 2)], ids=str)
    def test_for_good_is_an_error(self, emulator, instance, s3, hasty, task_id, status, times):
        emulator.fault("image", status, times=None)
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert str(status) in str(caught.value)
        assert len(image_calls(emulator)) == times
        assert in_bucket(s3) == {}

    def test_with_its_task_is_no_use_trying_again(self, emulator, instance, s3):
        url = f"{emulator.base_url}/gpt-image-2-outputs/of-long-ago.png"
        finished = {"task_id": "gpt-image-2-of-long-ago", "status": "completed", "images": [{"url": url}]}
        with fails_at_once(GptImgTaskNotFoundError):
            instance.attempt(transfer(finished))


class TestContent:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x89PNG",
            b"<html>not an image, though it is declared to be one</html>",
            b"GIF89a" + bytes(100),
            b"RIFF\x10\x00\x00\x00WAVE" + bytes(100),
            b"%PDF-1.7" + bytes(100),
        ],
        ids=["empty", "too short", "html", "gif", "wav", "pdf"],
    )
    def test_that_is_no_image_is_refused(self, emulator, instance, s3, content):
        task_id = emulator.add_task(image_bytes=[content], content_type="image/png")
        with may_be_retried(GptImgMediaError):
            instance.attempt(transfer(task_id))
        assert in_bucket(s3) == {}

    @pytest.mark.parametrize(
        "content",
        [png_of(500)[:-1], png_of(500)[:200], WEBP[:-1], JPEG[:-1], JPEG[:200]],
        ids=["png", "png", "webp", "jpeg", "jpeg"],
    )
    def test_that_is_cut_is_refused_though_its_length_is_as_told(self, emulator, instance, s3, hasty, content):
        task_id = emulator.add_task(image_bytes=[content])
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "cut" in str(caught.value)
        assert in_bucket(s3) == {}

    @pytest.mark.parametrize("content", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
    def test_that_ends_at_the_limit_is_taken(self, emulator, instance, s3, content):
        instance.attempt(transfer(emulator.add_task(image_bytes=[content]), max_image_bytes=len(content)))
        assert list(in_bucket(s3).values()) == [content]

    def test_beyond_the_limit_is_refused_by_its_header_alone(self, emulator, instance, s3):
        task_id = emulator.add_task(image_bytes=[png_of(MIB)])
        emulator.fault("image", "stall")
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id, max_image_bytes=MIB - 1))
        assert f"{MIB} bytes" in str(caught.value)
        until(lambda: emulator.waiting() == 0)
        assert in_bucket(s3) == {}


class TestHost:
    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.example/a.png",
            "https://gptimg.co.evil.example/a.png",
            "https://evilgptimg.co/a.png",
            "http://file.gptimg.co/a.png",
            "https://file.gptimg.co:8443/a.png",
            "https://user:password@file.gptimg.co/a.png",
            "https://file.gptimg.co\\@evil.example/a.png",
            "http://127.0.0.1:1/a.png",
            "http://169.254.169.254/latest/meta-data/",
            "file:///etc/passwd",
            "ftp://file.gptimg.co/a.png",
            "//file.gptimg.co/a.png",
            "a.png",
        ],
    )
    def test_that_is_foreign_is_never_asked(self, emulator, instance, s3, url):
        task_id = emulator.add_task(image_urls=[url])
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "refused" in str(caught.value) or "allowed host" in str(caught.value)
        assert in_bucket(s3) == {}

    def test_with_a_signature_in_its_url_stays_out_of_messages(self, emulator, instance, s3, log):
        task_id = emulator.add_task(image_urls=["https://evil.example/a.png?Signature=secret"])
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "secret" not in str(caught.value) + log()

    def test_of_the_vendor_is_asked_over_https(self, emulator, instance, s3, hasty):
        """It cannot be reached from here, which is all the same another error than a refusal."""
        task_id = emulator.add_task(image_urls=["https://file.gptimg.co/a.png"])
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "could not be downloaded" in str(caught.value)

    def test_that_the_connection_names_is_asked(self, emulator, instance, s3, quick, hasty):
        quick(media_hosts=["cdn.example"])
        task_id = emulator.add_task(image_urls=["https://cdn.example/a.png"])
        with may_be_retried(GptImgMediaError) as caught:
            instance.attempt(transfer(task_id))
        assert "could not be downloaded" in str(caught.value)

    def test_never_sees_the_key(self, emulator, instance, s3, hasty):
        task_id = emulator.add_task(image_bytes=[PNG] * 3)
        for fault in ("gone", 500, "short"):
            emulator.fault("image", fault)
        instance.attempt(transfer(task_id))
        assert len(image_calls(emulator)) == 6
        for call in image_calls(emulator):
            assert "authorization" not in call.headers
            assert emulator.api_key not in repr(call)


MEASURE = """
import resource, sys
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

small, large = sys.argv[1:]
GptImgToS3Operator(task_id="small", gptimg_task_id=small, s3_bucket="images").execute({})
before = peak()
(one,) = GptImgToS3Operator(task_id="large", gptimg_task_id=large, s3_bucket="images").execute({})
print(one["size"], peak() - before)
"""


def test_memory_does_not_grow_with_the_image(emulator, s3):
    large = emulator.add_task(image_bytes=[png_of(64 * MIB)])
    small = emulator.add_task(image_bytes=[PNG])
    command = [sys.executable, "-c", MEASURE, small, large]
    output = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True, timeout=250)
    size, grown = map(int, output.stdout.split()[-2:])
    assert size == 64 * MIB
    assert grown < 40
    (key,) = [key for key in in_bucket_keys(s3) if large in key]
    assert s3.head_object(Bucket="images", Key=key)["ContentLength"] == size


def in_bucket_keys(s3) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="images")["Contents"]]
