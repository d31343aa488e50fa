"""The page index.html: its markup, read by a parser, and the page itself, opened from disk in a real browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from poh_ext.maze_drawing import MazeSample
from poh_ext.report import results_table, write_report
from poh_ext.report.rendering import png_size
from tests.cases.reports import (
    STUDIED,
    carve,
    make_results,
    make_row,
    make_scaling,
    make_study,
    pad,
    study_record,
    walk,
)

HOSTILE = "<script>alert('1')</script> & \"quoted\" <img src=http://example.org/x.png>"
VOID = {"meta", "link", "img", "br", "hr"}
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What the tests ask of a page; raises where a tag is closed that is not the innermost open one."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.cells = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        self.tags.append((tag, dict(attributes)))
        if tag in ("th", "td"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of two sizes with every picture, and strings that would do harm unescaped wherever strings can be."""
    folder = tmp_path_factory.mktemp("report with space & #")
    routing = [{"model": "poh", "scale": "tiny", "seed": 0, "weights": [[[0.5, 0.5]]], "entropy": 0.69}]
    results = make_scaling(("tiny", "small"), seeds=(0, 1), n=24)
    results.rows[0].note = results.experiment = results.command = HOSTILE
    results.config, results.warnings, results.routing = {HOSTILE: HOSTILE}, [HOSTILE], routing
    results.save(folder / "results.json")
    passages = carve(1, 5, 5)
    path = pad([walk(passages[0], 0, 24)])
    write_report(results, folder, MazeSample(passages, [0], [24], path, {"PoH": path}))
    return results, folder


def test_every_link_and_picture_lies_beside_the_page_and_nothing_is_loaded(report):
    _, folder = report
    text = (folder / "index.html").read_text()
    found = Page(text)
    names = {path.name for path in folder.iterdir()}
    images = found.all("img")
    assert {image["src"] for image in images} == {name for name in names if name.endswith(".png")} and len(images) == 7
    for image in images:
        header = (folder / image["src"]).read_bytes()[16:24]
        assert [int(image["width"]), int(image["height"])] == [*np.frombuffer(header, ">u4")]
        assert len(image["alt"]) > 40
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"] for link in found.all("a")}
    assert {t for t in targets if not t.startswith("#")} == names
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.tags}
    for tag, attributes in found.tags:
        assert not any("//" in (value or "") or name.startswith("on") for name, value in attributes.items()), tag
    assert [link["href"] for link in found.all("link")] == ["data:,"]
    style = re.search("<style>(.*)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_it_is_a_whole_semantic_document(report):
    _, folder = report
    text = (folder / "index.html").read_text()
    found = Page(text)
    tags = [tag for tag, _ in found.tags]
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">') and tags.count("h1") == tags.count("main") == 1
    assert found.all("meta")[0] == {"charset": "utf-8"} and "width=device-width" in found.all("meta")[1]["content"]
    assert {cell.get("scope") for cell in found.all("th")} == {"col", "row"}
    assert tags.count("figure") == tags.count("figcaption") == tags.count("img")


def test_the_page_says_what_the_table_and_the_markdown_say(report):
    results, folder = report
    found = Page((folder / "index.html").read_text())
    table = results_table(results)
    cells = [cell.replace("\u00a0", " ") for cell in found.cells]
    expected = [*table.header, *(cell for row in table.rows for cell in row)]
    assert cells[: len(expected)] == expected
    plain = " ".join((folder / "report.md").read_text().replace("**", "").replace("`", "").split())
    sentences = [line for line in table.notes if line]
    assert sentences and all(s in found.text and s in plain for s in sentences)


def test_strings_are_shown_and_not_obeyed(report):
    found = Page((report[1] / "index.html").read_text())
    assert found.text.count(HOSTILE) == 7  # title, heading, command, note, warning, option and its value


def test_an_empty_run_has_a_page_too(tmp_path):
    write_report(make_results([], test_sets={}, status="interrupted"), tmp_path)
    found = Page((tmp_path / "index.html").read_text())
    assert "No model was finished." in found.text and "Interrupted:" in found.text and not found.all("img")


def test_every_part_has_both_forms(tmp_path):
    """A run with all that a report can hold, and text that must not stand on several lines or be read as markup."""
    results = make_study([study_record(0), study_record(1)])
    results.rows += [make_row(name, True, seed, [False] * STUDIED) for seed in (0, 1) for name in ("baseline", "poh/x")]
    results.rows[0].validation = [{"step": 1, "epoch": 0, "seconds": 2, "mazes": 9, "reached": 1, "optimal": 1}]
    results.experiment, results.warnings, results.environment = "A & B", ["one\ntwo"], {}
    results.config, results.protocol = {"o": {"p": "x\ny"}}, "as-published"
    write_report(results, tmp_path)
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "index.html").read_text()
    for part in (
        "# A & B, as-published protocol\n",
        "\n## Warnings\n\n- one two\n\n## Pictures\n\n![",
        "\n**What the as-published protocol measures.** The planners,",
        "\n- **uniform weights**: every head",
        "\n\n## How it was run\n\n- seed 0: ",
        "\n\nOptions:\n\n- `o.p`: x y\n\n",
        "\nEnvironment:\n\nnone recorded\n\n## Files\n\n- [index.html](index.html): this report",
    ):
        assert part in text, part
    for part in (
        '<h1 id="a-b-as-published-protocol">A &amp; B, as-published protocol</h1>\n<p class="headline">',
        "<li>one two</li>",
        "<p><strong>What the as-published protocol measures.</strong> The planners,",
        '<td class="number">',
        "<li><strong>uniform weights</strong>: every head has",
        "<dt><code>o.p</code></dt><dd>x\ny</dd>",
        "<summary>Environment</summary>\n<p>none recorded</p>",
        '<li><a href="index.html">index.html</a>: this report',
    ):
        assert part in page, part
    headings = re.findall("^##+ (.*)$", text, re.MULTILINE)
    assert headings == re.findall("<h[23] id=[^>]*>(.*)</h[23]>", page) and len(headings) == 11
    assert re.findall("^## (.*)$", text, re.MULTILINE) == re.findall('<li><a href="#[^"]*">(.*)</a></li>', page)


def test_a_picture_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"a\.png is not a PNG"):
        png_size(tmp_path / "a.png")


PROBE = """<script>
addEventListener("error", event => document.body.append("ERROR " + event.message), true);
addEventListener("load", () => document.documentElement.setAttribute("data-probe", JSON.stringify({
  images: [...document.images].map(image => [image.getAttribute("src"), image.complete ? image.naturalWidth : 0]),
  loaded: performance.getEntriesByType("resource").map(entry => entry.name),
  width: document.documentElement.scrollWidth, window: innerWidth})));
</script>"""


def browse(file, tmp_path, width):
    """Open a file in a headless browser that can reach nothing: what the probe in it saw, and the browser's log."""
    flags = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
             "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
             f"--window-size={width},900"]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # which root cannot have
    done = subprocess.run([BROWSER, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=600)
    probe = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert probe, f"the page did not load: {done.stderr[-2000:]}"
    return json.loads(probe[1].replace("&quot;", '"').replace("&amp;", "&")), done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 500])
    def test_all_pictures_load_from_disk_and_nothing_overflows(self, report, tmp_path, width):
        folder = tmp_path / "moved & # away"
        shutil.copytree(report[1], folder)
        probed = folder / "probed.html"
        probed.write_text((folder / "index.html").read_text().replace("</head>", PROBE + "</head>"))
        found, log = browse(probed, tmp_path, width)
        assert len(found["images"]) == 7 and all(wide > 500 for _, wide in found["images"]), found
        assert all(name.startswith("file:") for name in found["loaded"]), found["loaded"]
        assert "CONSOLE" not in log and "ERR_" not in log
        assert found["window"] == width and found["width"] <= width

    def test_this_test_would_see_a_missing_picture(self, report, tmp_path):
        folder = tmp_path / "broken"
        shutil.copytree(report[1], folder)
        (folder / "outcomes.png").unlink()
        probed = folder / "probed.html"
        probed.write_text((folder / "index.html").read_text().replace("</head>", PROBE + "</head>"))
        found, _ = browse(probed, tmp_path, 1280)
        assert dict(found["images"])["outcomes.png"] == 0 and sum(wide == 0 for _, wide in found["images"]) == 1
