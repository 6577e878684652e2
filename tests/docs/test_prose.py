"""README's length, and the length of sentences in it and in the pages under docs/."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

GENERATED = {"results.md", "compatibility.md"}  # by benchmarks/report.py
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED)]
LONGEST = 25  # words


def sentences(page: str) -> list[str]:
    """Returns the sentences outside code, tables and headings. An item of a list ends one; inline code is a word."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||#|    |:::).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    found = [re.split(r"(?<=[.!?])[*_]*\s+", " ".join(paragraph.split())) for paragraph in re.split(r"\n\s*\n", text)]
    return [sentence for some in found for sentence in some if sentence]


def words(sentence: str) -> int:
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def test_sentences_are_told_apart() -> None:
    page = "# A heading\n\nOne is *here*. Two `code. code`\nends; three.\n\n- four\n- [five](six.md) it is\n\n| no |\n"
    assert sentences(page) == ["One is *here*.", "Two code ends; three.", "four", "five it is"]
    assert words("Two code – ends") == 3


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    assert [sentence for sentence in sentences(page.read_text()) if words(sentence) > LONGEST] == []
