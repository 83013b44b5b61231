"""Files that are written under another name first are, in the end, files like any other."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from randwire_zoo.files import write_atomically


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)], ids=oct)
def test_a_file_may_be_read_by_whom_the_users_umask_lets(umask: int, mode: int, tmp_path: Path) -> None:
    """As one that open() makes; temporary files are for their owner alone."""
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / 'a.txt', 'a')
        (tmp_path / 'plain.txt').write_text('a')
        assert os.umask(umask) == umask, 'the umask is not left as it was'
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ('a.txt', 'plain.txt')] == [mode, mode]
