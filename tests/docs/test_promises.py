"""Each sentence on verify, tune, watch, series, laws, buckets, forms, adapters, and in SECURITY.md, has its tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, table
from tests.docs.promised.buckets import IN_BUCKETS
from tests.docs.promised.forms import ADAPTERS, CONTAINERS, GOING_ON, LOADERS
from tests.docs.promised.laws import GIVEN, LAWS, ROWS
from tests.docs.promised.series import SERIES
from tests.docs.promised.tune import TUNE
from tests.docs.promised.verify import PROMISED, VERIFY
from tests.docs.promised.watching import WATCHING

SAFETY, SECURITY = DOCS / "explanation" / "safety.md", ROOT / "SECURITY.md"
WRITTEN = DOCS / "reference" / "what-your-trainer-writes.md"
HOW_TO, LAW = DOCS / "how-to", DOCS / "explanation" / "law.md"
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def section(page: Path, heading: str) -> str:
    """Return the text below a heading, without code marks."""
    return page.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0].replace("`", "")


def items(text: str) -> list[str]:
    """Return the items of the lists in a text."""
    return re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)


def of_verify() -> list[str]:
    """Return the sentences on `verify`: rows, items, and the paragraphs around them."""
    text = section(SAFETY, "What `verify` promises")
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()[:1] not in "|-"]
    return [*(row[0] for row in table(SAFETY, "`verify` says")), *paragraphs, *items(text)]


def paragraphs(page: Path, without: tuple[str, ...] = ()) -> list[str]:
    """Return the paragraphs and the items of a page, without code marks; `without` sections of these headings."""
    told = []
    for part in _FENCE.sub("\n", page.read_text("utf-8")).split("\n## "):
        heading, _, text = part.partition("\n")
        for block in re.split(r"\n\s*\n|\n(?=- )", text) if heading not in without else ():
            plain = re.sub(r"[`]|\*\*", "", " ".join(block.split())).removeprefix("- ")
            told += [plain] if plain and plain[0] not in "|!" else []
    return told


def of_buckets() -> list[str]:
    """Return what the pages on buckets promise: the rows of their tables but the first, paragraphs, and items."""
    page, reference = HOW_TO / "buckets.md", DOCS / "reference" / "stores.md"
    wrong, stores = (section(reference, heading) for heading in ("What may go wrong", "What each store promises"))
    written = section(page, "Into a bucket") + section(reference, "How a release gets there")
    watching = section(page, "Keep up with a training that saves into a bucket")
    lines = [line.strip("| ") for line in f"{wrong}{written}{stores}".splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith(("what happens |", "store |"))]
    parts = [part.strip() for text in (written, stores) for part in text.split("\n\n")]
    return [*rows, *(part for part in parts if part and not part.startswith(("|", "console"))), *items(watching)]


def of_tune() -> list[str]:
    """Return the sentences on `tune`, each by itself; links by their words."""
    text = _FENCE.sub("\n", (HOW_TO / "choose-a-half-life.md").read_text("utf-8"))
    text = text.split("\n## 3. Let your evaluation choose\n")[1].split("\n## ")[0].replace("`", "")
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    parts = re.split(r"\n\n+|^- ", text, flags=re.MULTILINE)
    return [each for part in parts for each in re.split(r"(?<=[.:]) (?=[A-Z-])", " ".join(part.split())) if each]


def starting(sentence: str, known: dict[str, list[str]]) -> Iterator[str]:
    return (beginning for beginning in known if sentence.startswith(beginning))


CLAIMS = {
    "verify": (of_verify(), VERIFY),
    "SECURITY.md": (items(section(SECURITY, "What is promised")), PROMISED),
    "tune": (of_tune(), TUNE),
    "watch": (paragraphs(HOW_TO / "keep-up-with-a-training.md"), WATCHING),
    "series": (paragraphs(HOW_TO / "series.md"), SERIES),
    "weights of your own": (paragraphs(HOW_TO / "weights-of-your-own.md"), GIVEN),
    "buckets": (of_buckets(), IN_BUCKETS),
    "going on": (paragraphs(HOW_TO / "go-on-training.md"), GOING_ON),
    "containers": ([row[0] for row in table(HOW_TO / "go-on-training.md", "newest checkpoint")], CONTAINERS),
    "loaders": ([row[0] for row in table(WRITTEN, "loader")], LOADERS),
    "adapters": (paragraphs(HOW_TO / "adapters.md"), ADAPTERS),
    "laws": ([row[0] for row in table(LAW, "law")], ROWS),
    "law": (paragraphs(LAW, ("From stored averages", "Sources")), LAWS),
}


@pytest.mark.parametrize(("sentences", "known"), CLAIMS.values(), ids=CLAIMS)
def test_each_sentence_has_its_tests(sentences: list[str], known: dict[str, list[str]]):
    """A sentence without a test is none that may be said; a test without a sentence is in the wrong list."""
    assert [sentence for sentence in sentences if not any(starting(sentence, known))] == []
    assert set(known) - {each for sentence in sentences for each in starting(sentence, known)} == set()


@pytest.mark.parametrize(
    "node", sorted({node for _, known in CLAIMS.values() for nodes in known.values() for node in nodes})
)
def test_each_test_is_there(node: str):
    """Under the name that the list has."""
    file, name = node.split("::")
    assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8")
