"""Texts as the pools compare them."""

import re
import unicodedata

_WORD = re.compile(r"\w+")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    """Case, white space and Unicode spelling aside: what "the same text" means everywhere."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of a text in any script, without punctuation, case-folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def has_half_character(text: str) -> bool:
    """Whether it holds half of a surrogate pair: JSON can spell one (`\\ud83d`), but no tokenizer reads it and no file keeps it."""
    return _HALF_CHARACTER.search(text) is not None
