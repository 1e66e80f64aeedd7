"""Bytes of an image file → 256x256 RGB, or the reason why not.

The shorter side becomes 256 pixels and the central square is kept, as in 2012; small images are
enlarged and EXIF rotation is ignored. The result is that of torchvision's ``Resize(256)`` and
``CenterCrop(256)`` on a Pillow image to within two grey levels.

JPEG's reduced-size decoding is not used: it pays only from 512 pixels on, which is a few per cent
of ILSVRC2012, and moves pixels of those images by several grey levels.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from alexnet.errors import one_line
from alexnet.recipes import IMAGE_SIZE

MAX_PIXELS = 89_478_485
"""Pillow's own limit, 360 MB in its memory; ILSVRC2012's largest image has 61 million pixels."""

Reason = Literal[
    "empty", "truncated", "not an image", "too many pixels", "unsupported", "unreadable"
]


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """An image that could be read."""

    pixels: NDArray[np.uint8]
    """(256, 256, 3) RGB."""
    width: int
    """Of the original."""
    height: int
    """Of the original."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image could not be read."""

    reason: Reason
    """One of a few, to count by."""
    detail: str
    """One line for a person."""


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF stays unread: nothing here needs it, and Pillow warns of broken ones."""

    def _read_dpi_from_exif(self) -> None:
        pass


# The reader is chosen by content: endings lie, and Image.open would also try the EXIF of several
# images in one file and check the size against a limit of its own.
_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _Jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
)

# TIFF, Photoshop, JPEG 2000, JPEG XL, AVIF and HEIC.
_OTHER_IMAGE = re.compile(
    rb"II\*\0|MM\0\*|8BPS|\0\0\0\x0cj[PX][ L]|\xff\x0a|\xff\x4f\xff\x51|....ftyp(avi|he|mif1|msf1)",
    re.DOTALL,
)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Decoded | Rejection:
    """Read a JPEG, PNG, WEBP, GIF (its first picture) or BMP file.

    Bad data raises nothing. Whatever the pixels are (grey, palette, CMYK, 16 bits, with alpha),
    they become 8-bit RGB; alpha is dropped.

    Args:
        data: the whole file.
        max_pixels: the largest width times height; larger images are refused by their header.
    """
    if not data:
        return Rejection("empty", "the file has no bytes")
    reader = next((reader for start, reader in _READERS if start.match(data)), None)
    if reader is None:
        known = _OTHER_IMAGE.match(data)
        return Rejection(
            "unsupported" if known else "not an image",
            f"starts with {data[:12]!r}; JPEG, PNG, WEBP, GIF and BMP are read",
        )
    # Needs torch, which takes seconds to import, and not everyone who reads images decodes any.
    from alexnet.shards.resize import square_of_image

    if reader is _Jpeg and (decoded := _decode_ordinary_jpeg(data, max_pixels)):
        return decoded
    try:
        image = reader(BytesIO(data))
        width, height = image.size
        if width * height > max_pixels:
            return Rejection("too many pixels", f"{width}x{height}, the limit is {max_pixels}")
        pixels = square_of_image(_to_rgb(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Rejection("too many pixels", one_line(error))
    except MemoryError:
        raise  # The machine's fault; the size was already found to be within the limit.
    except Exception as error:  # Pillow's readers raise almost anything on damaged files.
        return Rejection(_reason(data, str(error).lower()), one_line(error))
    return Decoded(pixels, width, height)


def _decode_ordinary_jpeg(data: bytes, max_pixels: int) -> Decoded | None:
    """An undamaged colour JPEG of ordinary size within the limit; None for all others.

    Pillow and simplejpeg both hand the work to libjpeg-turbo with the same options and give the
    same pixels, but Pillow's way there is a quarter longer.
    """
    from alexnet.shards.resize import is_ordinary, square_of_pixels

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        ordinary = width * height <= max_pixels and is_ordinary(width, height)
        if colours != "YCbCr" or not ordinary:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # Whatever it warns of too: Pillow decides what can be read.
        return None
    return Decoded(square_of_pixels(pixels), width, height)


def render_reject(data: bytes) -> NDArray[np.uint8]:
    """What can be seen of a rejected file, (256, 256, 3): a JPEG up to its damage, else grey."""
    if data.startswith(b"\xff\xd8\xff"):
        ended = decode(data + b"\xff\xd9")
        if isinstance(ended, Decoded):
            return ended.pixels
    return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, np.uint8)


def _to_rgb(image: ImageFile) -> Image.Image:
    image.load()
    if image.mode == "RGB":
        return image
    # Pillow warns where it can't keep this, and here it is dropped anyway.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        # Pillow takes the high byte of 16-bit colour, but would clip 16-bit grey.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(data: bytes, message: str) -> Reason:
    if "unsupported" in message or "cannot handle" in message:
        return "unsupported"
    return "truncated" if "truncated" in message or _ends_early(data) else "unreadable"


def _ends_early(data: bytes) -> bool:
    """Whether the data stops before the end that its format announces."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return not data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82", b";"))
