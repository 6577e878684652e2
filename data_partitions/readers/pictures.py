"""Pictures in folders that are named after their class."""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_partitions.errors import DataError, note, reading, some

if TYPE_CHECKING:
    from PIL import Image
from data_partitions.readers.arrays import AGAIN, Arrays, check_memory, same_shape, visible

PICTURES = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP", "PCX", "PNG", "PPM", "PSD"),
    *("QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
"""Pillow's formats of still pictures; others it hands to programs outside, as it does PostScript."""

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Folders of class folders, by which some divide their pictures."""

KEPT, SMALL = 64, 32
"""Pictures of one size up to KEPT × KEPT keep it; others are resized to SMALL × SMALL where nothing else is asked."""


def image_folder(files: list[Path]) -> Arrays:
    """Pictures whose folder is named after their class, in any of the formats PICTURES, all of one size.

    16 bits a channel are scaled to 8. Files of other kinds and classes without a picture are noted.
    """
    pictures = _pictures(files, files[0].parent.parent)
    names = sorted({file.parent.name for file in pictures})
    _note_empty({file.parent.parent for file in files}, names)
    number = {name: index for index, name in enumerate(names)}
    images = np.empty(0, np.uint8)
    for index, file in enumerate(pictures):
        with reading(file, "picture", AGAIN), _opened(file) as picture:
            shape = (picture.height, picture.width, 3)
            if not index:
                check_memory(file, len(pictures) * math.prod(shape))
                images = np.empty((len(pictures), *shape), np.uint8)
            same_shape(pictures[0], images.shape[1:], file, shape)
            images[index] = np.asarray(_eight_bits(picture, file).convert("RGB"))
    return Arrays(images, np.array([number[file.parent.name] for file in pictures]), names)


def class_folders(files: list[Path], folder: Path, size: int | None) -> Arrays:
    """A user's pictures: `folder`/<class>/…, or `folder`/train/<class>/… and the like, whose parts are pooled.

    size: see `stack`.
    """
    pictures = _pictures(files, folder)
    within = {file: file.relative_to(folder).parts for file in pictures}
    parts = {names[0] for names in within.values() if len(names) > 1}
    depth = 1 if parts and {part.lower() for part in parts} <= PARTS else 0
    held = [file for file in pictures if len(within[file]) > depth + 1]
    if not held:
        raise DataError(f"{folder} has pictures, but in no class folder; put them into {folder}/<class>/")
    if left := len(pictures) - len(held):
        note(f"{folder}: left out {left} of {len(pictures)} pictures, which are in no class folder")
    if depth:
        note(f"{folder}: pictures of {', '.join(sorted(parts))} are pooled; each client gets a test part of its own")
    names = sorted({within[file][depth] for file in held})
    _note_empty({folder / part for part in parts} if depth else {folder}, names)
    if len(names) < 2:
        raise DataError(f"{folder} has one class folder with pictures, {names[0]!r}; two or more are needed")
    number = {name: index for index, name in enumerate(names)}
    x = stack([partial(_opened, file) for file in held], held, size, folder)
    return Arrays(x, np.array([number[within[file][depth]] for file in held]), names)


def stack(
    pictures: list[Callable[[], AbstractContextManager["Image.Image"]]], places: list[Path], size: int | None, of: Path
) -> np.ndarray:
    """uint8 (n, H, W, 3), or (n, H, W) where all are grey, of pictures that are opened one by one.

    They are turned as their cameras say, and resized to size × size, of which `of` is noted. Without a size those of
    one size up to KEPT × KEPT keep it, and others get SMALL × SMALL.
    """
    from PIL import Image, ImageOps

    sizes, modes = Counter[tuple[int, int]](), set[str]()
    for opened, place in zip(pictures, places, strict=True):
        with reading(place, "picture", AGAIN), opened() as picture:
            sizes[picture.size] += 1
            modes.add(picture.mode)
    first, *others = sorted(sizes, key=math.prod)
    wanted = (size or SMALL, size or SMALL)
    if size is None and not others and max(first) <= KEPT:
        wanted = first
    if set(sizes) != {wanted}:
        found = "{} × {}".format(*first) + (" to {} × {}".format(*others[-1]) if others else "")
        note(
            f"{of}: {len(pictures)} pictures of {found} pixels are resized to {wanted[0]} × {wanted[1]} (--image-size)"
        )
    mode = "L" if modes <= {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"} else "RGB"
    shape = (len(pictures), wanted[1], wanted[0], 3)[: 3 if mode == "L" else 4]
    check_memory(of, math.prod(shape))
    images = np.empty(shape, np.uint8)
    for index, (opened, place) in enumerate(zip(pictures, places, strict=True)):
        with reading(place, "picture", AGAIN), opened() as picture:
            picture.draft(None, (2 * wanted[0], 2 * wanted[1]))  # a large JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(_eight_bits(picture, place)).convert(mode)
            images[index] = np.asarray(upright.resize(wanted, Image.Resampling.BILINEAR))
    return images


def _pictures(files: list[Path], folder: Path) -> list[Path]:
    """Those of the formats PICTURES; others are counted in a note. Raises DataError where there are none."""
    from PIL import Image

    kinds = {end for end, format in Image.registered_extensions().items() if format in PICTURES}
    pictures = [file for file in files if file.suffix.lower() in kinds]
    if left := Counter(file.suffix.lower() or "no ending" for file in files if file.suffix.lower() not in kinds):
        ends = some(sorted(left)).replace("'", "")
        note(f"read {len(pictures)} of {len(files)} files: {left.total()} of a kind not known ({ends})")
    if not pictures:
        raise DataError(f"{folder} has no pictures; give {', '.join(PICTURES)} files")
    return pictures


def _note_empty(folders: set[Path], names: list[str]) -> None:
    everything = {folder.name for above in folders for folder in above.iterdir() if folder.is_dir() and visible(folder)}
    if empty := sorted(everything - set(names)):
        note(f"left out {len(empty)} of {len(everything)} classes, without pictures: {some(empty)}")


def _opened(file: Path) -> "Image.Image":
    from PIL import Image

    return Image.open(file, formats=PICTURES)


def _eight_bits(picture: "Image.Image", file: Path) -> "Image.Image":
    """An opened picture with 8 bits a channel. Raises DataError."""
    from PIL import Image

    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a JPEG with a preview
        raise DataError(f"{file} holds {frames} pictures; give one a file")
    # Pillow's own conversion clips 16 bits; in PNG and PPM its mode for 32 bits holds 16.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return Image.fromarray(np.rint(np.asarray(picture, np.float64) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise DataError(f"{file} has pixels of 32 bits; give 8 or 16 bits a channel")
    return picture
