"""Texts as the pools compare them."""

import re
import unicodedata

_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Case, white space and Unicode spelling aside: what "the same text" means everywhere."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of a text in any script, without punctuation, case-folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
