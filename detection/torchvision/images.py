"""Pictures as a detector wants them: RGB with 8 bits, turned as their EXIF says, whatever a file holds."""
from __future__ import annotations

import os
import warnings

import numpy as np
from PIL import ExifTags, Image

from randwire_zoo.errors import one_line

__all__ = ['SUFFIXES', 'convert_to_rgb', 'read_image']

#: Of the files that are taken from a folder.
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
#: EXIF's orientations, and what sets such a picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90}


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as RGB, upright.

    Raises:
        ValueError: naming the file, if it is none, is broken or truncated, has more pixels than Pillow takes for no
            attack (179 million), or values that `convert_to_rgb` refuses.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # from half of that on
            with Image.open(path) as image:
                image.load()  # first: Pillow turns TIFF by itself, and then forgets the orientation
                return convert_to_rgb(_turned(image))
    except Exception as error:  # a broken file may raise anything in Pillow's readers
        raise ValueError(f'{path} is no image that can be read: {one_line(error)}') from None


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB with 8 bits a channel.

    Of 16-bit images 65535 is white (Pillow itself would cut all off at 255), of floats and 32-bit integers the least
    of 1 (floats only), 255 and 65535 that no value exceeds.

    Raises:
        ValueError: if such values are negative, larger, or not finite.
    """
    if not image.mode.startswith(('I', 'F')):
        return image.convert('RGB')
    values = np.asarray(image)
    least, most = float(values.min()), float(values.max())
    whites: tuple[int, ...] = (1, 255, 65535) if image.mode == 'F' else (255, 65535)
    if image.mode.startswith('I;16') or image.format == 'PNG':  # older Pillows read its 16 bits as 32
        whites = (65535,)
    white = next((white for white in whites if most <= white), None)
    if not least >= 0 or white is None:
        raise ValueError(f'its values go from {least:g} to {most:g}, and not from 0 to {" or ".join(map(str, whites))}')
    return Image.fromarray((values * (255 / white) + 0.5).astype(np.uint8)).convert('RGB')


def _turned(image: Image.Image) -> Image.Image:
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # an EXIF block that cannot be read says nothing, as detectron2 has it too
        method = None
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    return turned
