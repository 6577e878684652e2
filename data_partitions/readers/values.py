"""How pixels and labels are taken that come in another form: scaled, rounded or one-hot."""

import numpy as np

from data_partitions.errors import DataError, note


def as_labels(y: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Whole numbers (n,) from labels, and how they were taken where that was not as they are. Raises DataError.

    Taken are also whole numbers stored as floats, shape (n, 1), and one-hot rows (n, classes).
    """
    if y.dtype.kind not in "iuf":
        raise DataError(f"{where} has labels of type {y.dtype}; whole numbers are needed")
    taken = []
    if y.ndim > 1 and y.size == len(y):
        taken.append(f"labels of shape {('n', *y.shape[1:])} are taken as (n,)".replace("'", ""))
        y = y.reshape(-1)
    elif y.ndim == 2 and y.shape[1] > 1 and ((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all():
        taken.append(f"one-hot labels are taken as whole numbers from 0 to {y.shape[1] - 1}")
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise DataError(f"{where} has labels of shape {y.shape}; one whole number for each sample is right")
    if y.dtype.kind == "f":
        wrong = ~np.isfinite(y) | (y != np.rint(y)) | (np.abs(y) > 2**53)
        if wrong.any():
            raise DataError(f"{where} has labels such as {y[wrong][0]}; whole numbers are needed")
        taken.append(f"whole labels stored as {y.dtype} are taken as integers")
        y = y.astype(np.int64)
    return y, ", ".join(taken)


def as_uint8(x: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Pixels as uint8, and the scale they had. Raises DataError.

    "integers" and floats that are "whole" stay as they are, 0 to 255; "decimals" from 0 to 1 are multiplied by 255, and
    so are floats that are 0 or 1 alone: "either".
    """
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has pixels of type {x.dtype}; give numbers")
    if x.dtype == np.uint8 or not x.size:
        return x.astype(np.uint8), "integers"
    real = x.dtype.kind == "f"
    whole = not real or bool((x == np.rint(x)).all())
    if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= (255 if whole else 1)):
        found = "NaN or infinity" if not np.isfinite(x).all() else f"values from {x.min()} to {x.max()}"
        raise DataError(f"{where} has {found}; give whole numbers from 0 to 255 or decimals from 0 to 1")
    if whole and (not real or x.max() > 1):
        return x.astype(np.uint8), "whole" if real else "integers"
    return np.rint(x * 255.0).astype(np.uint8), "either" if whole else "decimals"


def one_scale(pixels: list[tuple[np.ndarray, str]], where: list[str]) -> list[np.ndarray]:
    """What as_uint8 made of several arrays, brought to one scale: 0 and 1 may be the two darkest of 256 greys.

    Raises DataError where some were whole numbers stored as floats and others decimals.
    """
    first = {scale: place for (_, scale), place in reversed(list(zip(pixels, where, strict=True)))}
    if "whole" not in first:
        return [x for x, _ in pixels]
    if "decimals" in first:
        raise DataError(
            f"{first['whole']} has whole numbers to 255 and {first['decimals']} decimals from 0 to 1; give one scale"
        )
    note(f"{first['whole']}: taken as whole numbers from 0 to 255, not as decimals from 0 to 1")
    return [x // 255 if scale == "either" else x for x, scale in pixels]
