"""The characters that are classes, and text as numbers of an alphabet."""

import string
from collections import Counter

import numpy as np

from data_partitions.errors import DataError, note
from data_partitions.readers.arrays import as_many

DIGITS = list(string.digits)
CHARACTERS = DIGITS + list(string.ascii_uppercase) + list(string.ascii_lowercase)
"""The 62 classes of NIST's characters, in the order of their labels."""

LETTERS = list("\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}")
"""LEAF's alphabet of 80 for Shakespeare; a character outside it is read as a space, and a note counts these."""

SEQUENCE = 80
"""Characters before the one to predict, as in LEAF."""


OUTSIDE = 0.01
"""The share of characters outside LETTERS above which a text has an alphabet of its own."""


def alphabet_of(text: str, where: str) -> list[str]:
    """LETTERS where the text is written in them, otherwise the space and its own characters, 255 at most, sorted."""
    counts = Counter(text)
    if sum(counts[letter] for letter in counts if letter not in LETTERS) <= OUTSIDE * len(text):
        return LETTERS
    chosen = sorted({" ", *(letter for letter, _ in counts.most_common(254))})
    note(f"{where}: the text has an alphabet of its own, {len(chosen)} of {len(counts)} characters")
    return chosen


def windows(text: str, alphabet: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """x uint8 (n, 80) and y uint8 (n,): the text cut into pieces of 80 characters and the one that follows.

    The pieces do not overlap, unlike LEAF's, so that no character is in two samples and none leaks between splits. What
    is left at the end is dropped. Characters outside the alphabet have the number after its last.
    """
    count = len(text) // (SEQUENCE + 1)
    ids = _ids(text[: count * (SEQUENCE + 1)], alphabet)
    return ids[:, :-1], ids[:, -1]


def _ids(text: str, alphabet: list[str]) -> np.ndarray:
    number = np.full(max(map(ord, alphabet)) + 1, len(alphabet), np.uint8)
    number[[ord(letter) for letter in alphabet]] = np.arange(len(alphabet))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").reshape(-1, SEQUENCE + 1)
    return np.where(codes < len(number), number[np.minimum(codes, len(number) - 1)], np.uint8(len(alphabet)))


def disjoint_windows(x: list[str], y: list[str], alphabet: list[str], where: str) -> tuple[np.ndarray, np.ndarray]:
    """As `windows`, of LEAF's samples: where each is the one before moved by a character, every 81st is kept."""
    as_many(where, len(x), "its y", len(y))
    if any(
        not (isinstance(before, str) and isinstance(after, str) and (len(before), len(after)) == (SEQUENCE, 1))
        for before, after in zip(x, y, strict=True)
    ):
        raise DataError(f"{where} has other samples than {SEQUENCE} characters and the one that follows; give these")
    ids = _ids("".join(before + after for before, after in zip(x, y, strict=True)), alphabet)
    starts = np.concatenate([[True], (ids[1:, :-1] != ids[:-1, 1:]).any(axis=1)])
    index = np.arange(len(ids))
    moved = index - np.maximum.accumulate(np.where(starts, index, 0))
    kept = ids[moved % (SEQUENCE + 1) == 0]
    return kept[:, :-1], kept[:, -1]
