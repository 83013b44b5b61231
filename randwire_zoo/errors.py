"""Errors as their reader needs them: one line that names the file that is meant, and the nearest right word."""
from __future__ import annotations

import difflib
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ['loading', 'nearest', 'one_line']


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception's message on one line, shortened; its type where it has no message."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f'{text[:limit]} …'


def nearest(word: str, words: Iterable[str], otherwise: str = '') -> str:
    """What to add to an error about an unknown word: those that it may have been meant to be, or something else."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.7)
    return f'; did you mean {", ".join(close)}?' if close else otherwise


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
