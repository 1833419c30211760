"""No file uses a word that has an everyday one: see "Plain English" in CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTEAD = {
    r"anew": "again",
    r"mend(s|ed|ing)?": "repair",
    r"(who|what|which|where)(so)?ever": "another phrase",
    r"there(by|in|of|upon)": "so, in it, of it",
    r"(hence|whence|forthwith|lest|nor|ere)": "so, from where, at once, so that … not, and not, before",
    r"upon": "on",
    r"bur(y|ies|ied|ying)": "remove",
    r"custody": "lease",
    r"reservoirs?": "candidate cache",
    r"(time|roll)-outs?": "timeout, rollout",
    r"(at|to) hand": "current, ready",
    r"put(s|ting)? aside": "set aside",
    r"(told|tell|tells|telling) of": "report, know, name",
    r"but for": "except",
    r"hand(s|ed|ing)? out": "dispatch, give",
    r"dear(er|est)?": "expensive",
    r"shall": "must, will",
    r"let alone": "another phrase",
    r"as of yet": "yet",
}
_WORDS = re.compile(rf"\b(?:{'|'.join(f'(?:{word})' for word in INSTEAD)})\b", re.IGNORECASE)
_PLACES = ("*.md", "Makefile", "pyproject.toml", ".ci/*", "broker_*/**/*", "deploy/**/*", "docs/**/*", "tests/**/*")
_KINDS = {".c", ".cfg", ".json", ".md", ".py", ".proto", ".sh", ".tf", ".toml", ".yaml", ".yml", ""}


def files() -> Iterator[Path]:
    for path in sorted({path for place in _PLACES for path in ROOT.glob(place)}):
        is_saved = ROOT / "tests" / "upgrade" in path.parents and path.suffix == ".json"
        if path.suffix in _KINDS and path.is_file() and path != Path(__file__) and not is_saved:
            yield path


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, word), also from names, but not from the last column of the glossary."""
    text = path.read_text()
    if path.name == "glossary.md":
        text = re.sub(r"^(\|.*\|)[^|\n]*\|$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " "))
    for found in _WORDS.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[0]


def test_no_file_has_a_word_that_has_an_everyday_one() -> None:
    hits = [f"{path.relative_to(ROOT)}:{number}: {word}" for path in files() for number, word in words_of(path)]
    if hits:
        instead = "\n".join(f"{word}: use {better}" for word, better in INSTEAD.items())
        pytest.fail("\n".join([f"{len(hits)} words", *hits, instead]), pytrace=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It begins anew.", ["anew"]),
        ("def test_a_drain_begins_anew() -> None:", ["anew"]),
        ("class WhoeverLoses:", ["Whoever"]),
        ("However, this amendment is endearing; Honor and northern hands remain.", []),
        ("A time-out, not a timeout; HANDED OUT.", ["time-out", "HANDED OUT"]),
    ],
)
def test_words_are_found_as_whole_words_also_in_names(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "text.md").write_text(text)
    assert [word for _, word in words_of(tmp_path / "text.md")] == found


def test_the_glossary_may_name_a_word_that_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "glossary.md").write_text("| lease | one allocation, anew | custody |\n")
    assert [word for _, word in words_of(tmp_path / "glossary.md")] == ["anew"]
