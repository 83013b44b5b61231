"""scikit-learn's handwritten digits as an image folder: 1,797 grey images of 8×8 pixels in ten classes."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..files import atomic_folder

__all__ = ['HELD_OUT', 'write_digits']

HELD_OUT = 360  # a fifth
SPLIT_SEED = 0


def write_digits(folder: str | Path) -> Path:
    """Write train/ and validation/ with the folders 0 … 9, unless they are already there.

    The split is always the same: stratified, 1,437 images to train on and 360 held out.

    Args:
        folder: Where to; it appears only when it is complete.

    Returns:
        The folder.

    Raises:
        ValueError: if scikit-learn is not installed.
        FileExistsError: if the folder exists and holds something else.
    """
    folder = Path(folder)
    if folder.exists():
        if _is_complete(folder):
            return folder
        if not folder.is_dir() or any(folder.iterdir()):
            raise FileExistsError(f'{folder} exists and does not hold the 1,797 digits; name another folder')
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError('the digits come with scikit-learn: pip install scikit-learn') from None
    digits = load_digits()
    # 0 … 16 to 0 … 255
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    indices = np.arange(len(pixels))
    train, held_out = train_test_split(
        indices, test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=digits.target)
    with atomic_folder(folder) as temporary:
        for split, members in (('train', train), ('validation', held_out)):
            for index in members:
                path = temporary / split / str(digits.target[index]) / f'{index:04}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(path)
    return folder


def _is_complete(folder: Path) -> bool:
    counts = [sum(1 for _ in (folder / split).glob('[0-9]/*.png')) for split in ('train', 'validation')]
    return counts == [1797 - HELD_OUT, HELD_OUT]
