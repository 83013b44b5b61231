"""What is wrong with a file of weights, in one line that names the file."""
from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import one_line

__all__ = ['loading']


@contextmanager
def loading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever torch, safetensors and timm raise over a bad weight file into one line that names the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the block fails because the file is empty, truncated, unsafe or made for another model.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {path}')
    if path.stat().st_size == 0:
        raise ValueError(f'{path} is empty')
    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError,
            OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} cannot be loaded: {_reason(error)}') from error


def _reason(error: Exception) -> str:
    """What is wrong with a file, where torch names its own switches or pickle its own state."""
    message = one_line(error)
    if (isinstance(error, (pickle.UnpicklingError, EOFError, KeyError)) and not re.search('[a-z]{3}', message)) or any(
            advice in message for advice in ('weights_only', 'mmap can only', 'invalid load key')):
        return 'it is no checkpoint, or one with more in it than tensors and settings'
    return message
