"""mkdocs_hook.py: links of the repository on the site, its comments, formulas, and names that lead to the reference."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="pip install 'poh_ext[docs]'")
pytest.importorskip("latex2mathml")

import mkdocs_hook as hook


def rendered(text: str, page: str = "losses.md") -> str:
    """What becomes of the Markdown of a page."""
    return hook.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)


@pytest.mark.parametrize(
    "page, link, found",
    [
        ("losses.md", "[examples](../examples/README.md)", "[examples](examples.md)"),
        ("losses.md", "[examples/](../examples/)", "[examples/](examples.md)"),
        ("losses.md", "[it](../examples/small_gpt.py)", "[it](files/examples/small_gpt.py.md)"),
        ("api/io.md", "[it](../../LICENSE#x)", "[it](../files/LICENSE#x)"),
        ("api/io.md", "[files](../formats.md#drawings)", "[files](../formats.md#drawings)"),
        ("contributing.md", "[docs/cuda.md](docs/cuda.md)", "[The CUDA kernels](cuda.md)"),
        ("losses.md", "[away](https://pytorch.org) [here](#top)", "[away](https://pytorch.org) [here](#top)"),
        ("losses.md", "[gone](../nowhere.md) [out](../../x.md)", "[gone](../nowhere.md) [out](../../x.md)"),
    ],
)
def test_links_lead_to_the_pages_of_the_site(page, link, found):
    assert rendered(link, page) == found


def test_a_part_of_another_file_is_included_with_its_links():
    text = rendered('before\n<!-- site: include README.md until "## A solved maze" -->\nafter', "api/io.md")
    assert text.startswith("before\n# poh_ext\n") and text.endswith("\nafter") and "A solved maze" not in text
    assert "](../cuda.md)" in text
    text = rendered('<!-- site: include README.md after "## Install" until "## The losses" -->')
    assert text.strip().startswith("```bash") and "## " not in text and "](install.md)" in text


def test_the_help_of_a_command_is_what_it_prints():
    text = rendered("<!-- site: help poh-ext maze convert -->")
    assert text.startswith("~~~~text\nusage: poh-ext maze convert") and "--from" in text


@pytest.mark.parametrize(
    "comment, said",
    [
        ("inclde README.md", "losses.md: 'inclde README.md' is unknown; accepted: help COMMAND, include FILE"),
        ("include README.md", "losses.md: 'include README.md' is unknown"),
        ('include README.md until "## Nothing"', "README.md has no line that begins with '## Nothing'"),
        ('include README.md after "## No" until "## Install"', "README.md has no line that begins with '## No'"),
    ],
)
def test_a_comment_that_cannot_be_followed_is_an_error(comment, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        rendered(f"<!-- site: {comment} -->")


def test_public_names_lead_to_their_description():
    def linked(html: str) -> str:
        return hook.on_page_content(html, None, None, None)

    for code, path in (
        ("cross_entropy", "poh_ext.cross_entropy.cross_entropy"),
        ("poh_ext.route", "poh_ext.routing.route"),
        ("poh_ext.io.read", "poh_ext.io.read"),
        ("MazeBatch.open", "poh_ext.mazes.MazeBatch.open"),
    ):
        html = f"<code>{code}</code>"
        assert linked(html) == f'<autoref identifier="{path}" optional>{html}</autoref>'
    for html in (
        "<code>read</code>",
        "<code>route(x)</code>",
        '<a href="x"><code>route</code></a>',
        "<h2><code>route</code></h2>",
        "<pre><span></span><code>route</code></pre>",
    ):
        assert linked(html) == html


def test_formulas_are_mathml():
    formula = hook._formula(r"\frac{a}{b}", "math", "formula", {}, None)
    assert formula.startswith('<div class="formula"><math') and "<mfrac>" in formula


def test_the_pages_from_outside_exist():
    assert all((Path(hook.ROOT) / source).is_file() for source in hook.OUTSIDE)
