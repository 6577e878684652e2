"""The constants that a model's input is normalised with."""

import numpy as np

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel: of bytes in [0, 1], of float32 as it is."""

PER_PARTITION: Pixels = (), ()
"""In a sample file: each partition has the constants of its own training samples."""


def constants(x: np.ndarray, rows: np.ndarray) -> Pixels:
    """Those of the samples in `rows` of x, uint8 or float32 (n, H, W), (n, H, W, C) or (n, F).

    Rounded, so that no machine's order of summation shows: bytes to four decimals, float32 to eight digits. A channel
    that never changes is given deviation 1, as it is divided by.
    """
    channels = x.shape[-1] if x.ndim in (2, 4) else 1
    parts = np.array_split(rows, 1 + len(rows) // 1000)  # what is summed needs eight times the memory of bytes
    if x.dtype == np.uint8:
        counts = np.zeros((channels, 256), np.int64)
        for part in parts:
            values = x[part].reshape(-1, channels)
            counts += [np.bincount(column, minlength=256) for column in values.T]
        share, levels = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
        mean = share @ levels
        deviation = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)).round(4)
        mean = mean.round(4)
    else:
        count = len(rows) * (x[0].size // channels)
        mean = sum(x[part].reshape(-1, channels).sum(axis=0, dtype=np.float64) for part in parts) / count
        squares = sum(((x[part].reshape(-1, channels) - mean) ** 2).sum(axis=0) for part in parts)
        deviation = np.sqrt(squares / count)
        deviation[deviation <= np.finfo(np.float32).eps * np.abs(mean)] = 0
        mean, deviation = (np.array([float(f"{value:.8g}") for value in each]) for each in (mean, deviation))
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())
