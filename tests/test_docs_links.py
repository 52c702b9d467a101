# SPDX-License-Identifier: Apache-2.0
"""Every link leads somewhere, in the Markdown and in the site, which is built without a warning and loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_pages import PAGES, ROOT, anchors, links

from airflow_provider_gptimg import get_provider_info

MAKEFILE = (ROOT / "Makefile").read_text()
HOSTS = {
    "airflow.apache.org",
    "github.com",  # the theme's footer
    "gptimg.co",
    "keepachangelog.com",
    "pradyunsg.me",
    "semver.org",
    "www.sphinx-doc.org",
}


def check_outward(url: str) -> None:
    """There is no network to follow it in, so: a whole HTTPS URL of a host that is known."""
    parts = urlsplit(url)
    assert parts.scheme == "https"
    assert parts.netloc in HOSTS
    assert re.fullmatch(r"[\w./~%#?=&+-]*", url.removeprefix("https://"))


@pytest.mark.parametrize("page", PAGES)
def test_links_in_markdown_lead_somewhere(page):
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            check_outward(target)
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(str(file.resolve().relative_to(ROOT))), target


class Page(HTMLParser):
    """What a page of the site refers to, what it loads by itself, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if "id" in found:
            self.ids.add(found["id"])
        if "href" in found:
            (self.loads if tag == "link" else self.targets).append(found["href"])
        for name in ("src", "data", "action", "poster", "srcset"):
            if name in found:
                self.loads.append(found[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    (recipe,) = re.findall(r"^docs: .*\n\t\$\(BIN\)/python (-m sphinx .*) docs site$", MAKEFILE, re.MULTILINE)
    options = recipe.replace("build/doctrees", str(folder / "doctrees")).split()
    ended = subprocess.run(
        [sys.executable, *options, "docs", str(folder / "html")],
        cwd=ROOT,
        env=os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


@pytest.mark.system
def test_the_site_has_every_page(site, pages):
    expected = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    assert expected <= {path.relative_to(site) for path in pages}


@pytest.mark.system
def test_links_in_the_site_lead_somewhere(pages):
    outward = 0
    for path, page in pages.items():
        for target in page.targets:
            if re.match(r"[a-z]+:", target):
                check_outward(target)
                outward += 1
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            assert file.exists(), f"{path.name}: {target}"
            if anchor and file in pages:
                assert unquote(anchor) in pages[file].ids, f"{path.name}: {target}"
    assert outward


@pytest.mark.system
def test_the_site_loads_nothing_from_elsewhere(site, pages):
    for path, page in pages.items():
        for target in page.loads:
            assert not re.match(r"([a-z]+:)?//", target), f"{path.name}: {target}"
            assert (path.parent / unquote(re.split("[?#]", target)[0])).exists(), f"{path.name}: {target}"
    for style in site.rglob("*.css"):
        for target in loaded_by_style(style.read_text()):
            assert target.startswith("data:") or (style.parent / re.split("[?#]", target)[0]).exists(), target
    for script in site.rglob("*.js"):
        assert not re.search(r"(import\(|importScripts\(|fetch\(|\.src ?=) ?[\"'](https?:)?//", script.read_text())


def loaded_by_style(text: str) -> Iterator[str]:
    yield from (target for _, target in re.findall(r"""url\(\s*(["']?)(.*?)\1\s*\)""", text))
    yield from re.findall(r"@import\s+[\"']([^\"']+)", text)


@pytest.mark.parametrize("drawing", sorted(ROOT.glob("docs/images/*.svg")), ids=lambda path: path.stem)
def test_a_drawing_is_whole_and_follows_the_readers_colours(drawing):
    import xml.etree.ElementTree as ElementTree

    text = drawing.read_text()
    root = ElementTree.fromstring(text)
    assert root.get("viewBox")
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|src)=|@import|url\((?!#)", text)


@pytest.mark.system
def test_a_wide_window_shows_all_code_and_a_narrow_one_scrolls_only_in_its_boxes(site, pages, browser):
    too_wide = "[...document.querySelectorAll('pre')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    with browser.new_page(viewport={"width": 1440, "height": 900}) as wide:
        for path in pages:
            if "_modules" not in path.parts and path.stem not in {"genindex", "py-modindex", "search"}:
                wide.goto(path.as_uri())
                assert wide.evaluate(too_wide) == [], path.name
        buttons = wide.goto((site / "getting-started.html").as_uri()) and wide.locator("button.copybtn")
        assert buttons.count() > 5
    with browser.new_page(viewport={"width": 390, "height": 800}) as narrow:
        for path in pages:
            narrow.goto(path.as_uri())
            assert narrow.evaluate("document.documentElement.scrollWidth") <= 390, path.name


@pytest.mark.system
def test_every_public_class_has_its_reference(pages):
    """What a DAG author may import, as the provider's metadata lists it."""
    info = get_provider_info()
    modules = [
        module
        for kind in ("operators", "sensors", "triggers", "hooks")
        for group in info[kind]
        for module in group["python-modules"]
    ]
    modules += [transfer["python-module"] for transfer in info["transfers"]]
    names = [f"{module}.{name}" for module in modules for name in public_names(module)]
    names += [decorator["class-name"] for decorator in info["task-decorators"]]
    documented = {name for page in pages.values() for name in page.ids}
    assert len(names) > 8
    assert set(names) <= documented


def public_names(module: str) -> list[str]:
    import importlib

    return list(importlib.import_module(module).__all__)
