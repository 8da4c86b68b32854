"""Pictures as bytes."""

import io

import numpy as np
import numpy.typing as npt


def encode_gif(frames: npt.NDArray[np.uint8], fps: float) -> bytes:
    """Frames (T, H, W, 3) as an animated GIF that repeats. GIF counts in hundredths of a second, and players take fewer than two for a mistake."""
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames)
    hundredths = max(2, round(100 / fps))
    stream = io.BytesIO()
    first.save(stream, format="GIF", save_all=True, append_images=rest, duration=10 * hundredths, loop=0)
    return stream.getvalue()
