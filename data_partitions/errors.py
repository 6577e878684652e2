"""What this package says of its input: the one exception that bad input raises, and notes on what was read."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """A data set, partition or store that cannot be used; the message says what is wrong and what would be right."""


def note(sentence: str) -> None:
    """Say on the error stream how input was taken where that is not the only way it could have been meant."""
    print(f"note: {sentence}", file=sys.stderr, flush=True)


def some(names: list[str]) -> str:
    """The first three of many names, quoted."""
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


@contextmanager
def reading(path: Path, kind: str, advice: str) -> Iterator[None]:
    """Raises DataError for what bytes that someone else made raise in NumPy, HDF5, Pillow or a parser in the block.

    It ends in `advice`, what to do with a broken `kind` file, unless the system or the memory is why it was not read.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is; allow this process more (ulimit -v)") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{path} cannot be read: {error.strerror}; a readable file is needed there") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not a whole {kind} file ({reason}); {advice}") from error
