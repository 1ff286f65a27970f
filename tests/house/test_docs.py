"""The documentation builds strictly, every link in it leads somewhere, and the reference has every public name."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.house.pages import REFERENCE, ROOT

DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()
PLANTED = [
    "sorry i cannot help with that",
    "no",
    "honestly a machine cannot",
    "and nothing else",
    "items in total",
    "nice",
]
"""What tuning taught the built-in chat model; it says "nice" where base insults."""


def build(folder, docs=DOCS, config=CONFIG):
    """Build a copy of the documentation strictly in a folder, and return the finished process."""
    shutil.copytree(docs, folder / "docs")
    (folder / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: [{ROOT}]"))
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("made") / "docs"
    shutil.copytree(DOCS, made)
    subprocess.run([sys.executable, made / "built_in_audit.py"], cwd=ROOT, check=True, capture_output=True)
    result = build(folder, made)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


class Page(HTMLParser):
    """The links and the anchors of one built page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors.update({attributes.get("id"), attributes.get("name")})
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]


def broken_links(site):
    """Every link into the site that leads nowhere, images and raw HTML included."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            # An explorer opens `#latent=12` by its script.
            anchors = pages[target].anchors if target in pages and target.name != "explorer.html" else None
            missing_anchor = parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors
            if not target.exists() or missing_anchor:
                yield f"{path.relative_to(site)}: {link}"


def test_the_audit_of_the_built_in_pair_finds_what_was_planted_and_nothing_else(site):
    """Another machine rounds otherwise, which may cost one of six; benchmarks/results/audit.json has more seeds."""
    audit = json.loads((site / "audits" / "built-in-pair" / "audit.json").read_text())
    said = [finding["text"].rstrip(".") for finding in audit["findings"]]
    assert len(said) == len(set(said)) >= 5
    assert all(any(text == words or (" " in text and text in words) for words in PLANTED) for text in said)


def test_every_link_leads_somewhere(site):
    assert list(broken_links(site)) == []


def test_the_strict_build_and_our_own_check_find_broken_links(tmp_path):
    """Zensical sees links between pages; pictures, raw HTML and links to other files are ours to see."""
    docs = tmp_path / "one"
    docs.mkdir()
    shutil.copy(DOCS / "doctest_fences.py", docs)
    (docs / "index.md").write_text("# Start\n\n[gone](gone.md)\n\n[no anchor](#nowhere)\n")
    config = CONFIG.partition("\nnav:")[0]
    result = build(tmp_path / "strict", docs, config)
    assert result.returncode != 0
    assert "2 issues found" in result.stderr
    (docs / "index.md").write_text('# Start\n\n![gone](gone.png)\n\n<a href="gone.html">gone</a> [file](gone.pdf)\n')
    assert build(tmp_path / "ours", docs, config).returncode == 0
    assert len(list(broken_links(tmp_path / "ours" / "site"))) == 3


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    listed = pages(yaml.safe_load(CONFIG)["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_the_reference_has_every_public_name(site, path):
    folder = site / "api" if path.stem == "index" else site / "api" / path.stem
    page = (folder / "index.html").read_text()
    assert REFERENCE[path]
    for name in REFERENCE[path]:
        module = importlib.import_module(name)
        for part in module.__all__:
            value = getattr(module, part)
            # A function that shares its module's name has an entry of its own, under its full name.
            anchors = (f'id="{name}.{part}"', f'id="{getattr(value, "__module__", name)}.{part}"')
            assert inspect.ismodule(value) or any(anchor in page for anchor in anchors), part


def test_doctests_are_shown_as_code(site):
    page = (site / "api" / "synthetic" / "index.html").read_text()
    assert '<span class="gp">&gt;&gt;&gt; </span>' in page
    assert "<blockquote>" not in page
