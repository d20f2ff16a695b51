"""Image files as arrays of bytes, as a viewer shows them, within bounds of memory."""

from __future__ import annotations

import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from dmdistill.data.image_tensors import center_crop

__all__ = ["MAX_BYTES", "decode_image", "is_coloured", "one_if_large"]

GREY = ("1", "L", "LA")  # modes of PIL; 16 bits and more are another matter
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MAX_PIXELS = 1 << 26  # 8192 x 8192
MAX_BYTES = 4 * MAX_PIXELS  # of a file
LARGE_BYTES = 1 << 26
LARGE = threading.RLock()
ORIENTATION = 0x0112  # of EXIF
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", module=r"PIL\.")  # of many pixels, where MAX_PIXELS is less; of damaged EXIF data


def one_if_large(size: int) -> AbstractContextManager[object]:
    """Return a lock for data of many bytes, of which one thread may hold any at a time, and for others none."""
    return LARGE if size > LARGE_BYTES else nullcontext()


def open_image(stream: BinaryIO) -> Image.Image:
    """Read an image's header. ValueError for more than 8 bits a channel or more than 67 million pixels."""
    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        raise ValueError("it is no image of a format that is known") from None
    if image.mode not in (*GREY, *COLOUR):
        raise ValueError(f"its mode is {image.mode}, expected 8 bits a channel")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS} in all")
    return image


def is_coloured(stream: BinaryIO) -> bool:
    """Return whether an image has colours, by its header."""
    with open_image(stream) as image:
        return image.mode not in GREY


def decode_image(stream: BinaryIO, side: int | None = None) -> np.ndarray:
    """Decode an image as a viewer shows it, turned as its EXIF data say and over white: uint8, H W C, C 1 or 3.

    Cropped and resized to a side where that is given, by `center_crop`.
    """
    with open_image(stream) as image, one_if_large(3 * image.width * image.height):
        mode = "L" if image.mode in GREY else "RGB"
        shown = turn(image)
        if shown.has_transparency_data:
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown.convert("RGBA"))
        shown = shown.convert(mode)
        array = np.asarray(shown if side is None else center_crop(shown, side))
    return array[:, :, None] if array.ndim == 2 else array


def turn(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say; damaged EXIF data say nothing."""
    image.load()  # turns TIFF files itself
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # of any kind
        return image
    method = TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)
