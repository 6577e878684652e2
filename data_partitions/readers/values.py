"""How samples and labels are taken that come in another form: scaled, rounded, one-hot, or with channels first."""

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


def as_shaped(x: np.ndarray) -> tuple[np.ndarray, str]:
    """Samples with channels last and pixels in rows, and how they were taken where that was not as they are."""
    if x.ndim == 4 and x.shape[1] <= 4 < x.shape[3]:
        return np.moveaxis(x, 1, 3), f"samples of shape {x.shape[1:]} are taken as channels first, and stored as last"
    if x.ndim == 2 and x.shape[1] == 28 * 28:
        return x.reshape(-1, 28, 28), "samples of 784 values are taken as pictures of 28 × 28"
    return x, ""


def as_stored(arrays: list[np.ndarray], where: list[str], rounding: bool = False) -> np.ndarray:
    """Several arrays as one: uint8 where they hold grey values, float32 otherwise. Raises DataError.

    Grey values are whole numbers from 0 to 255 and multiples of 1/255 from 0 to 1, with ``rounding`` all from 0 to 1.
    Rows of features (n, F) are none, unless they are bytes. All other numbers stay as they are.
    """
    for x, place in zip(arrays, where, strict=True):
        check_numbers(x, place)
    some_bytes = [x.dtype in (np.uint8, np.bool_) for x in arrays]
    features = arrays[0].ndim == 2
    if all(some_bytes) or (not features and (any(some_bytes) or all(_grey(x, rounding) for x in arrays))):
        pixels = [as_uint8(x, place) for x, place in zip(arrays, where, strict=True)]
        if len(scales := dict.fromkeys(scale for _, scale in pixels)) > 1 and "integers" in scales:
            note(f"{where[0]} has {pixels[0][1]}, and there are {' and '.join(scales)}; each is scaled by its own type")
        return np.concatenate(one_scale(pixels, where))
    if lost := sorted({str(x.dtype) for x in arrays} - {"float32"}):
        note(f"{where[0]}: {' and '.join(lost)} values are stored as float32")
    with np.errstate(over="ignore"):
        stored = np.concatenate([x.astype(np.float32) for x in arrays])
    if not np.isfinite(stored).all():
        largest = max(abs(x).max() for x in arrays)
        raise DataError(f"{where[0]} has values that float32 does not hold, such as {largest}; give smaller ones")
    return stored


def check_numbers(x: np.ndarray, where: str) -> None:
    """Raise DataError unless all values are finite numbers."""
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has pixels of type {x.dtype}; give numbers")
    if x.ndim and not (finite := np.isfinite(x)).all():
        samples = np.flatnonzero(~finite.reshape(len(x), -1).all(axis=1))
        raise DataError(
            f"{where} has NaN or infinity in {len(samples)} of {len(x)} samples, the first in number {samples[0]}; "
            "fill them in or leave these samples out"
        )


def _grey(x: np.ndarray, rounding: bool) -> bool:
    """Whether all values may be levels of 256: whole numbers, or decimals up to the rounding of their type."""
    if not x.size or x.min() < 0 or x.max() > 255:
        return not x.size
    if x.dtype.kind != "f" or (x == np.rint(x)).all():
        return True
    if rounding or x.max() > 1:
        return bool(x.max() <= 1)
    levels = x * np.float64(255)
    return bool(np.abs(levels - np.rint(levels)).max() <= max(255 * np.finfo(x.dtype).eps, 1e-3))


def as_uint8(x: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """Pixels as uint8, and the scale they had. Raises DataError.

    "integers" and floats that are "whole" stay as they are, 0 to 255; "decimals" from 0 to 1 are multiplied by 255, and
    so are floats that are 0 or 1 alone: "either".
    """
    check_numbers(x, where)
    if x.dtype == np.uint8 or not x.size:
        return x.astype(np.uint8), "integers"
    real = x.dtype.kind == "f"
    whole = not real or bool((x == np.rint(x)).all())
    if not (x.min() >= 0 and x.max() <= (255 if whole else 1)):
        raise DataError(
            f"{where} has values from {x.min()} to {x.max()}; give whole numbers from 0 to 255 or decimals from 0 to 1"
        )
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
