"""Bytes of an image file → 256x256 RGB, or the reason for which it can't be decoded.

The shorter side is resized to 256 pixels and the central square is kept, as in 2012; small images
are enlarged. EXIF orientation is ignored, as in 2012, unless images are to be upright. The result
differs from that of torchvision's ``Resize(256)`` and ``CenterCrop(256)`` on a Pillow image by at
most 2 of 255.

JPEG's reduced-size decoding is not used: it is faster only if the shorter side has 512 pixels or
more, which is so for a few per cent of ILSVRC2012, and it changes their pixels by more than that.
"""

import re
import warnings
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
from alexnet.sources.content import explain_pointer

MAX_PIXELS = 89_478_485
"""Pillow's limit, 360 MB in its memory; the largest image of ILSVRC2012 has 61 million pixels."""

Reason = Literal[
    "empty",
    "truncated",
    "not an image",
    "not downloaded",
    "too many pixels",
    "unsupported",
    "unreadable",
]


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded image."""

    pixels: NDArray[np.uint8]
    """(256, 256, 3) RGB."""
    width: int
    """Of the original image in pixels; with ``upright`` of the image after it was turned."""
    height: int
    """As ``width``."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an image can't be decoded."""

    reason: Reason
    """The category, by which rejects are counted."""
    detail: str
    """One line of explanation."""


class _Jpeg(JpegImageFile):
    """A JPEG reader that ignores EXIF: it is not needed, and Pillow warns if it is damaged."""

    def _read_dpi_from_exif(self) -> None:
        pass


# The reader is chosen by content, because file extensions are unreliable. Image.open is not used:
# it also reads EXIF of files with several images, and checks the size against another limit.
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


_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by the value of EXIF's tag ``Orientation``."""


def decode(
    data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = False
) -> Decoded | Rejection:
    """Decode and resize a JPEG, PNG, WEBP, GIF (its first image) or BMP file.

    Damaged data raises no exception. All kinds of pixels (grey, palette, CMYK, 16 bits, with alpha)
    are converted to 8-bit RGB; alpha is dropped.

    Args:
        data: content of the file.
        max_pixels: the largest width times height; larger images are rejected by their header.
        upright: turn the image as its EXIF orientation says, before it is resized; a damaged EXIF
            block is ignored.
    """
    if not data:
        return Rejection("empty", "the file has no bytes")
    reader = next((reader for signature, reader in _READERS if signature.match(data)), None)
    if reader is None and (pointer := explain_pointer(data)):
        return Rejection("not downloaded", pointer)
    if reader is None:
        is_image = _OTHER_IMAGE.match(data)
        return Rejection(
            "unsupported" if is_image else "not an image",
            f"starts with {data[:12]!r}; JPEG, PNG, WEBP, GIF and BMP are read",
        )
    # This imports torch, which takes seconds, and not every process that imports this module
    # decodes images.
    from alexnet.shards.resize import square_of_image

    as_stored = reader is _Jpeg and not (upright and _is_turned_jpeg(data))
    if as_stored and (decoded := decode_ordinary_jpeg(data, max_pixels)):
        return decoded
    try:
        image = reader(BytesIO(data))
        width, height = image.size
        if width * height > max_pixels:
            return Rejection("too many pixels", f"{width}x{height}, the limit is {max_pixels}")
        rgb = _to_rgb(image)
        if upright and (turn := _turn(image)) is not None:
            rgb = rgb.transpose(turn)
        width, height = rgb.size
        pixels = square_of_image(rgb)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return Rejection("too many pixels", one_line(error))
    except MemoryError:
        raise  # Not the image's fault: its size is within the limit.
    except Exception as error:  # Pillow raises many types of errors on damaged files.
        return Rejection(_reason(data, str(error).lower()), one_line(error))
    return Decoded(pixels, width, height)


def decode_ordinary_jpeg(data: bytes, max_pixels: int) -> Decoded | None:
    """Decode and resize an undamaged colour JPEG of ordinary size; None for all other files.

    Pillow and simplejpeg both call libjpeg-turbo with the same options and return the same pixels,
    but Pillow takes a quarter longer.
    """
    from alexnet.shards.resize import is_ordinary, square_of_pixels

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        ordinary = width * height <= max_pixels and is_ordinary(width, height)
        if colours != "YCbCr" or not ordinary:
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # Also for what are only warnings: Pillow decides what can be decoded.
        return None
    return Decoded(square_of_pixels(pixels), width, height)


def _is_turned_jpeg(data: bytes) -> bool:
    try:
        return _turn(_Jpeg(BytesIO(data))) is not None
    except Exception:  # Pillow raises many types of errors on damaged files.
        return False


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright; None if it is upright, or if its EXIF block is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About damage in other tags.
            return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # As above.
        return None


def render_reject(data: bytes) -> NDArray[np.uint8]:
    """A rejected file as (256, 256, 3) RGB: a JPEG up to its damaged part, other files as grey."""
    if data.startswith(b"\xff\xd8\xff"):
        decoded = decode(data + b"\xff\xd9")
        if isinstance(decoded, Decoded):
            return decoded.pixels
    return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, np.uint8)


def _to_rgb(image: ImageFile) -> Image.Image:
    image.load()
    if image.mode == "RGB":
        return image
    # Pillow would warn if it can't convert transparency, which is dropped here.
    image.info.pop("transparency", None)
    if image.mode.startswith("I"):
        # Pillow converts 16-bit colour to its high byte, but it would clip 16-bit grey.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _reason(data: bytes, message: str) -> Reason:
    if "unsupported" in message or "cannot handle" in message:
        return "unsupported"
    return "truncated" if "truncated" in message or _ends_early(data) else "unreadable"


def _ends_early(data: bytes) -> bool:
    """Whether the data ends before the end that the format requires."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return not data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82", b";"))
