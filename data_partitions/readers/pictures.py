"""Pictures in folders that are named after their class."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError, note, reading, some

if TYPE_CHECKING:
    from PIL import Image
from data_partitions.readers.arrays import AGAIN, Arrays, check_memory, same_shape, visible

PICTURES = ("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow's formats of still pictures; others it hands to programs outside, as it does PostScript."""


def image_folder(files: list[Path]) -> Arrays:
    """Pictures whose folder is named after their class, in any of the formats PICTURES, all of one size.

    16 bits a channel are scaled to 8. Files of other kinds and classes without a picture are noted.
    """
    from PIL import Image

    kinds = {end for end, format in Image.registered_extensions().items() if format in PICTURES}
    pictures = [file for file in files if file.suffix.lower() in kinds]
    if left := Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in kinds):
        ends = some(sorted(left)).replace("'", "")
        note(f"read {len(pictures)} of {len(files)} files: {left.total()} of a kind not known ({ends})")
    if not pictures:
        raise DataError(f"{files[0].parent.parent} has no pictures; give {', '.join(PICTURES)} files")
    names = sorted({file.parent.name for file in pictures})
    folders = {file.parent.parent for file in files}
    everything = {folder.name for above in folders for folder in above.iterdir() if folder.is_dir() and visible(folder)}
    if empty := sorted(everything - set(names)):
        note(f"left out {len(empty)} of {len(everything)} classes, without pictures: {some(empty)}")
    number = {name: index for index, name in enumerate(names)}
    images = np.empty(0, np.uint8)
    for index, file in enumerate(pictures):
        with reading(file, "picture", AGAIN), Image.open(file, formats=PICTURES) as picture:
            shape = (picture.height, picture.width, 3)
            if not index:
                check_memory(file, len(pictures) * math.prod(shape))
                images = np.empty((len(pictures), *shape), np.uint8)
            same_shape(pictures[0], images.shape[1:], file, shape)
            images[index] = _rgb(picture, file)
    return Arrays(images, np.array([number[file.parent.name] for file in pictures]), names)


def _rgb(picture: "Image.Image", file: Path) -> np.ndarray:
    """uint8 (height, width, 3) of an opened picture."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a JPEG with a preview
        raise DataError(f"{file} holds {frames} pictures; give one a file")
    # Pillow's own conversion clips 16 bits; in PNG and PPM its mode for 32 bits holds 16.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        grey = np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(f"{file} has pixels of 32 bits; give 8 or 16 bits a channel")
    return np.asarray(picture.convert("RGB"))
