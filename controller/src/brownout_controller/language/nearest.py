"""The nearest right word, for every "did you mean"."""

from collections.abc import Iterable, Mapping

from rapidfuzz import process
from rapidfuzz.distance import DamerauLevenshtein

_LONGEST_WORD = 64
_ALIKE = 0.5


def nearest(word: str, known: Iterable[str], synonyms: Mapping[str, str] | None = None) -> str | None:
    """The known word most like `word`, or None if nothing is near.

    Likeness is 1 - distance / length by the Damerau-Levenshtein distance: swapped neighbours count as one slip.
    `synonyms` maps words that other tools use to the known word that means the same.
    """
    meanings = {name: name for name in known} | dict(synonyms or {})
    found = process.extractOne(
        word[:_LONGEST_WORD].lower(),
        list(meanings),
        scorer=DamerauLevenshtein.normalized_similarity,
        score_cutoff=_ALIKE,
    )
    return meanings[found[0]] if found else None
