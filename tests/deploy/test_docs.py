"""The documents: every link leads somewhere, the README stays short, and no job is left out."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from broker_common.core.job_registry import JOBS
from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

README_LINES = 150
PLACES = ("*.md", "docs/**/*.md", "deploy/**/*.md", "broker_api/description/**/*.md", "tests/**/*.md")
DOCUMENTS = sorted(path for place in PLACES for path in ROOT.glob(place))

_LINK = re.compile(r"\[[^\[\]]*\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s<>]+)>?", re.MULTILINE)
_HTML = re.compile(r"""<(?:a|img)\s[^>]*?\b(?:href|src)=["']([^"']+)["']""")
_FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)[^`].*?\1", re.DOTALL)


def links_of(text: str) -> Iterator[str]:
    """Return the targets of all links of a document; what stands in code is none."""
    prose = _CODE.sub("`code`", _FENCE.sub("", text))
    for pattern in (_LINK, _REFERENCE, _HTML):
        yield from pattern.findall(prose)


def anchors_of(text: str) -> set[str]:
    """Return the anchors that GitHub gives a document: of its headings, and those that it names itself."""
    prose = _FENCE.sub("", text)
    found: set[str] = set()
    seen = Counter[str]()
    for heading in re.findall(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", prose, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found | set(re.findall(r"""<a\s[^>]*?\b(?:id|name)=["']([^"']+)["']""", prose))


def find_fault(document: Path, target: str, root: Path = ROOT) -> str | None:
    """Say why a link leads nowhere; None if it is right, or leads to another site."""
    if re.match(r"(https?|mailto):", target):
        return None
    path, _, anchor = unquote(target).partition("#")
    if path.startswith("/"):
        return f"{target} is an absolute path: name the file from here"
    led_to = (document.parent / path).resolve() if path else document
    if not led_to.is_relative_to(root):
        return f"{target} leads out of the repository"
    if not led_to.exists():
        return f"{target}: there is no such file"
    if anchor and led_to.suffix == ".md" and anchor not in anchors_of(led_to.read_text()):
        return f"{target}: {led_to.relative_to(root)} has no such heading"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert [fault for target in links_of(document.read_text()) if (fault := find_fault(document, target))] == []


def test_the_index_names_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / target.partition("#")[0]).resolve() for target in links_of(index.read_text())}
    assert [
        str(each.relative_to(ROOT)) for each in (ROOT / "docs").glob("**/*.md") if each not in {*named, index}
    ] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_its_line(job: str) -> None:
    (jobs,) = re.findall(
        r"^## 4\. Jobs$(.*?)^## ", (ROOT / "docs" / "contract.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert re.search(rf"^\| {job} \|", jobs, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        *((each, None) for each in ("there.md", "#here", "https://example.com/x#y")),
        *((f"there.md#{each}", None) for each in ("what-there-is", "what-there-is-1", "4-jobs--runs", "named")),
        ("gone.md", "there is no such file"),
        *((f"there.md#{each}", "has no such heading") for each in ("in-code", "what-there-is-2")),
        ("#nowhere", "has no such heading"),
        ("/docs/there.md", "absolute path"),
        ("../out.md", "leads out of the repository"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, target: str, fault: str | None) -> None:
    (tmp_path / "there.md").write_text(
        '# What there is\n## What `there` *is*\n### 4. Jobs & runs\n<a id="named"></a>\n```\n# In code\n```\n'
    )
    document = tmp_path / "from.md"
    document.write_text(f"# Here\n[a link]({target}) and `[code](gone.md)`\n```\n[code](gone.md)\n```\n")
    (found,) = links_of(document.read_text())
    assert found == target
    said = find_fault(document, found, tmp_path)
    assert fault in said if fault and said else said == fault
