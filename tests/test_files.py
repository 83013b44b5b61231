"""Files that are written under another name first are, in the end, files like any other."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from randwire_zoo.files import Locked, atomic_folder, lock, read_summary, write_atomically

UMASKS = pytest.mark.parametrize('umask', [0o022, 0o027, 0o002, 0o077], ids=oct)


@pytest.fixture
def mask(umask: int) -> Iterator[int]:
    """The umask of a test, which has to leave it as it is."""
    before = os.umask(umask)
    try:
        yield umask
    finally:
        assert os.umask(before) == umask, 'the umask is not left as it was'


@UMASKS
def test_a_file_may_be_read_by_whom_the_users_umask_lets(mask: int, tmp_path: Path) -> None:
    """As one that open() makes; temporary files are for their owner alone."""
    write_atomically(tmp_path / 'a.txt', 'a')
    (tmp_path / 'plain.txt').write_text('a')
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ('a.txt', 'plain.txt')] == [0o666 & ~mask] * 2


def test_a_name_may_be_as_long_as_the_file_system_lets(tmp_path: Path) -> None:
    """Photographs have such names, and what is drawn of them is called like them."""
    for name in ('a' * 251 + '.txt', 'ä' * 125 + '.txt'):
        write_atomically(tmp_path / name, 'a')
        assert (tmp_path / name).read_text() == 'a'
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='this system has no /proc')
def test_a_file_that_cannot_be_made_is_called_by_its_own_name() -> None:
    with pytest.raises(OSError) as caught:
        write_atomically('/proc/a.txt', 'a')  # where not even root makes files
    assert caught.value.filename == '/proc/a.txt'


def test_a_summary_that_a_spreadsheet_has_saved_is_read(tmp_path: Path) -> None:
    (tmp_path / 'summary.csv').write_text('epoch,train_loss\r\n0,2.5\r\n', encoding='utf-8-sig')
    assert read_summary(tmp_path / 'summary.csv') == [{'epoch': 0, 'train_loss': 2.5}]


@pytest.mark.parametrize('content', ['epoch,train_loss\n0,2.5\n'.encode('utf-16'), b'epoch,lr\n0,1\n' + bytes(200_000)],
                         ids=['another encoding', 'a disk that lost power'])
def test_a_summary_that_is_no_csv_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / 'summary.csv').write_bytes(content)
    with pytest.raises(ValueError, match=rf'^{tmp_path}/summary\.csv is no CSV: '):
        read_summary(tmp_path / 'summary.csv')


@UMASKS
@pytest.mark.parametrize('parent', [0o755, 0o2775], ids=oct)  # in the second, all is of the folder's group
def test_a_folder_may_be_read_by_whom_the_users_umask_lets(mask: int, parent: int, tmp_path: Path) -> None:
    """As one that mkdir makes, whether it is new or takes the place of an empty one."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data').chmod(parent)
    (tmp_path / 'data' / 'empty').mkdir()
    for name in ('new', 'empty'):
        with atomic_folder(tmp_path / 'data' / name) as temporary:
            (temporary / 'a.txt').write_text('a')
            assert os.listdir(tmp_path / 'data' / 'empty') == [], 'it appears before it is complete'
        assert os.listdir(tmp_path / 'data' / name) == ['a.txt']
    (tmp_path / 'data' / 'plain').mkdir()
    modes = {name: oct((tmp_path / 'data' / name).stat().st_mode) for name in os.listdir(tmp_path / 'data')}
    assert modes == dict.fromkeys(('new', 'empty', 'plain'), modes['plain'])
    assert int(modes['plain'], 8) & 0o777 == 0o777 & ~mask


def test_of_a_folder_that_fails_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_folder(tmp_path / 'a' / 'b') as temporary:
        (temporary / 'c').mkdir()
        raise KeyError
    assert os.listdir(tmp_path / 'a') == []


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
@pytest.mark.parametrize('forked', [True, False])
def test_a_lock_is_held_once_and_by_a_forked_process_where_it_is_to_be(forked: bool, tmp_path: Path) -> None:
    end, still = os.pipe()
    with lock(tmp_path / '.lock', forked=forked):
        with pytest.raises(Locked, match=r'^taken$'), lock(tmp_path / '.lock', held='taken'):
            pass
        child = os.fork()
        if child == 0:
            os.close(still)
            os.read(end, 1)  # until this process closes it
            os._exit(0)
    try:
        if forked:
            with pytest.raises(Locked), lock(tmp_path / '.lock'):
                pass
        else:
            for _ in range(1000):  # until the child has begun
                try:
                    with lock(tmp_path / '.lock'):
                        break
                except Locked:
                    time.sleep(0.02)
            else:
                pytest.fail('the child has the lock')
    finally:
        os.close(still)
        os.waitpid(child, 0)
        os.close(end)
