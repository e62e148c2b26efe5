"""Which candidates of a prompted augmentor are no usable instructions (method section 12, row 23). Each reason has a
name."""

import re
import unicodedata
from typing import Literal

from comd_trainer.data.instructions import IMAGE_TOKEN

MIN_WORDS = 3

# Words of our own prompt, and what chat models say around an answer: a candidate with them speaks about the task, not
# about the image.
_META = re.compile(
    r"\b(?:example|seed|given|original|new|previous|above|provided)\s+(?:instruction|question|task|prompt)s?\b"
    r"|\b(?:instruction|question|output)\s*:"
    r"|\bas an? (?:ai|language model)\b"
    r"|\b(?:here is|here's|here are) (?:a|an|one|the|your|my)\b"
    r"|^(?:sure|certainly|of course|okay)\b[,.!:]"
    r"|\b(?:same skill|paraphrase)\b",
    re.IGNORECASE,
)
# A text without a question mark that opens like this states something and asks for nothing.
_STATEMENT_OPENINGS = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "that",
        "these",
        "those",
        "there",
        "it",
        "its",
        "i",
        "i'm",
        "we",
        "you",
        "he",
        "she",
        "they",
        "my",
        "our",
        "your",
        "his",
        "her",
        "their",
    ]
)


def clean(text: str) -> str:
    """Surrounding white space and one pair of quotes, which models like to add, are no part of an instruction."""
    text = text.strip()
    for opening, closing in (('"', '"'), ("'", "'"), ("“", "”"), ("`", "`")):
        if len(text) > 1 and text[0] == opening and text[-1] == closing and opening not in text[1:-1]:
            return text[1:-1].strip()
    return text


def reject_reason(text: str, *, finish: Literal["stop", "length"]) -> str | None:
    """Why a cleaned candidate is turned down, or None. The reasons:

    `cut` (stopped by length), `short` (fewer than 3 words), `punctuation` and `non-ascii` (how it starts), `meta`
    (speaks about the task), `statement` (neither a question nor a request).
    """
    if finish == "length":
        return "cut"
    if len(text.split()) < MIN_WORDS:
        return "short"
    if not text[0].isascii():
        return "non-ascii"
    if unicodedata.category(text[0])[0] in "PS":
        return "punctuation"
    if IMAGE_TOKEN in text or _META.search(text):
        return "meta"
    if "?" not in text and text.split()[0].lower().strip(",.:;") in _STATEMENT_OPENINGS:
        return "statement"
    return None
