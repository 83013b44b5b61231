"""Errors as their reader needs them: on one line, with the nearest right word."""
from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ['nearest', 'one_line']


def one_line(error: BaseException, limit: int = 400) -> str:
    """An exception's message on one line, shortened; its type where it has no message."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f'{text[:limit]} …'


def nearest(word: str, words: Iterable[str], otherwise: str = '') -> str:
    """What to add to an error about an unknown word: those that it may have been meant to be, or something else."""
    close = difflib.get_close_matches(word, dict.fromkeys(words), cutoff=0.7)
    return f'; did you mean {", ".join(close)}?' if close else otherwise
