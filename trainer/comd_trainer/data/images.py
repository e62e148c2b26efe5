"""Images of the manifest's folder: opened, told apart by content, and recognised when they come back re-encoded."""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

THUMB_SIDE = 16
"""Side of the grey thumbnails by which near copies are recognised, in pixels."""
DRAFT_SIDE = 64
"""JPEGs are decoded no larger than needed for a thumbnail: all bytes are still read, which is what shows damage."""

# The default, said aloud: half an image would be learnt from as if it were whole.
ImageFile.LOAD_TRUNCATED_IMAGES = False


UNREADABLE = (
    *(
        OSError,
        SyntaxError,
        ValueError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise for damaged files, each in its own way (AVIF's a RuntimeError). Memory that runs out is not among it."""


class BadImageError(ValueError):
    """An image file that is missing or does not decode; the message names it."""


class Images:
    """The folder `data.images`. Names are paths below it, as the rows have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Raises BadImageError for a name that leads out of the folder or to no file."""
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadImageError(f"image {_shortened(name)} is not a path below data.images")
        path = self.folder / name
        # As `Path.is_file`, but also false for names that no file system takes.
        if not os.path.isfile(path):
            raise BadImageError(f"image {_shortened(name)} is not a file below data.images")
        return path

    def open(self, name: str) -> Image.Image:
        """The decoded image, RGB: upright, transparent pixels white, as viewers show it. Raises BadImageError."""
        path = self.path(name)
        try:
            with Image.open(path) as image:
                image.load()
                return _to_rgb(image)
        except UNREADABLE as error:
            raise BadImageError(f"image {name!r} does not decode: {error}") from error

    def digest(self, name: str) -> str:
        """SHA-256 (hex) of the file's bytes. Raises BadImageError."""
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(self.path(name).read_bytes()).hexdigest()
        return self._digests[name]


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:117]}...")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright (cameras note the turn in EXIF), on white, RGB: the picture that a viewer shows."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What the pools need to know of an image; taken once and kept in the store."""

    sha256: str | None = None
    """Of the file's bytes; None when there is no such file."""
    thumb: str | None = None
    """Grey thumbnail of 16 x 16 pixels, row by row, two hex digits each; None when the image does not decode."""
    error: str | None = None
    """Why the image can't be used."""


def look_at(images: Images, name: str) -> ImageFacts:
    """Decodes an image once: whether it can be used, and by what it is recognised."""
    try:
        digest = images.digest(name)
    except BadImageError as error:
        return ImageFacts(error=str(error))
    try:
        with Image.open(images.path(name)) as image:
            image.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))
            image.load()
            grey = _to_rgb(image).convert("L").resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    except UNREADABLE as error:
        return ImageFacts(sha256=digest, error=f"image {name!r} does not decode: {error}")
    return ImageFacts(sha256=digest, thumb=grey.tobytes().hex())


def look_at_all(images: Images, names: Iterable[str], *, threads: int = 4) -> dict[str, ImageFacts]:
    """`look_at` for many; the decoders release the interpreter's lock, so threads help."""
    ordered = sorted(set(names))
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(ordered, pool.map(lambda name: look_at(images, name), ordered), strict=True))


def thumb_vectors(thumbs: list[str]) -> NDArray[np.float32]:
    """(len(thumbs), 256): thumbnails without their mean and of length 1, so that a dot product is a correlation. A
    picture of one colour becomes zeros and so resembles nothing: only its bytes can be recognised."""
    if not thumbs:
        return np.zeros((0, THUMB_SIDE * THUMB_SIDE), np.float32)
    pixels = np.frombuffer(bytes.fromhex("".join(thumbs)), np.uint8).reshape(len(thumbs), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1, keepdims=True)
    vectors: NDArray[np.float32] = np.divide(pixels, norms, out=np.zeros_like(pixels), where=norms > 1.0)
    return vectors
