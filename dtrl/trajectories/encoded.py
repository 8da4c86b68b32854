"""Texts and images that Minari stores as pieces of bytes. What the head of an image states is checked before a pixel is decoded: a few hundred bytes may
state any size."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from dtrl.archives import check_size
from dtrl.errors import InputError
from dtrl.spaces import Space, is_image, walk


def read_encoded(pieces: Iterator[bytes], space: Space, where: str) -> Any:
    """Texts as a list, or images (T, …) that Minari stored as JPEG, from pieces of bytes.

    Raises InputError for a text that is longer than the space allows, and an image of another size."""
    if isinstance(space, spaces.Text):
        texts = []
        for piece in pieces:
            if len(piece) > 4 * space.max_length:  # bytes of UTF-8
                raise InputError(
                    f"{where} hold a text of {len(piece)} bytes, longer than {space} allows; get it again."
                )
            texts.append(piece.decode())
        return texts
    if not is_image(space):
        raise InputError(f"{where} hold pieces of bytes, where numbers of {space} are expected; get the dataset again.")
    images = []
    for piece in pieces:
        with opened_image(piece, space, where) as image:
            images.append(np.asarray(image, dtype=np.uint8))
    return np.stack(images)


@contextmanager
def opened_image(piece: bytes, space: Space, where: str) -> Iterator[Any]:
    """A JPEG image, of which only the head has been read.

    Raises InputError where it states another size than the space's, or a larger one than its bytes are enough for: of 16 × 16 pixels they hold at least
    6 of the numbers that are an average, each of a bit or more."""
    from PIL import Image

    with Image.open(io.BytesIO(piece), formats=("JPEG",)) as image:
        shape = (image.height, image.width, len(image.getbands()))
        if shape[: len(space.shape or ())] != space.shape:
            raise InputError(f"{where} hold an image of shape {shape}, and the space is {space}; get it again.")
        check_size(math.prod(shape), len(piece), f"an image in the {where}")
        yield image


def check_images(values: Any, space: Space, where: str) -> None:
    """`opened_image` of every image in an array of Arrow with values of the space, whose images Minari decodes as they are.

    Minari's structs name their fields by the keys of a Dict, and the numbers of a Tuple."""
    from pyarrow import types

    for keys, leaf in walk(space):
        column = values
        for key in keys:
            column = column.field(key)
        if not is_image(leaf) or types.is_nested(column.type):  # numbers, in lists
            continue
        for piece in column.drop_null().to_pylist():  # there is no action after the last observation
            with opened_image(piece, leaf, "/".join((where, *keys))):
                pass
