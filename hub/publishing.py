"""Sending a staged folder to the Hub, and proving that what is served there is what was sent."""
from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.manifest import FILENAME, HubError, PublishedWeights, check_file, fetch, hub_errors, sha256_of
from randwire_zoo.models import ARCHITECTURES, find_weights

from .card import write_card
from .checks import CONFIG, CheckFailed, Staged, check_folder, equal_logits, load_model, required_files

__all__ = ['check_row', 'locate', 'pull', 'push', 'verify']


def push(folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False) -> PublishedWeights | None:
    """Publish a staged folder as one commit with one tag, check what the Hub then serves, and give the manifest's row.

    What is on the Hub already is not sent again, so that running it twice is harmless. The tag is named after the
    content and is never moved.

    Args:
        folder: As `staging.stage` made it; its card is written anew with the repository's name.
        repo_id: Such as `owner/randwire_ws_c109.in1k`; it is made if it is not there.
        private: Make it a private one.
        dry_run: Check everything here, and send nothing; then there is no row.

    Raises:
        CheckFailed: if the folder, or what is served afterwards, is not what it must be.
        HubError: if the Hub cannot be reached or refuses.
    """
    folder = Path(folder)
    check_folder(folder)
    write_card(folder, repo_id)
    staged = check_folder(folder)
    hashes = {name: sha256_of(folder / name) for name in staged.files}
    tag = f'{staged.config["pretrained_cfg"]["tag"]}-{_content(hashes)[:12]}'
    _say(f'{staged.name}: all checks passed; metrics {dict(staged.metrics)}')
    if dry_run:
        for name in staged.files:
            _say(f'would send {name} ({(folder / name).stat().st_size:,} bytes, sha256 {hashes[name]})')
        _say(f'would commit to {repo_id} and tag the commit {tag}')
        return None
    if get_token() is None:
        raise HubError(f'{repo_id}: there is no token; set HF_TOKEN or run `hf auth login`')
    api = HfApi()
    with hub_errors(repo_id):
        try:
            _validate(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            head = api.model_info(repo_id).sha
            assert head is not None
            commit = head if _is_there(api, repo_id, head, staged) else _commit(api, repo_id, head, staged)
            _tag(api, repo_id, commit, tag)
            if not _is_there(api, repo_id, commit, staged):
                raise CheckFailed(f'{repo_id}@{commit}: the Hub records other files than were sent')
        except HfHubHTTPError as error:
            if getattr(error.response, 'status_code', None) == 412:
                raise HubError(f'{repo_id}: its head has moved since this began; look at it and run again') from error
            raise
    row = staged.row(repo_id, commit)
    _check_served(row, staged)
    _say(f'{repo_id}@{commit}: tagged {tag}; downloaded afresh, same sha256, equal logits')
    return row


def locate(target: str) -> PublishedWeights | tuple[str, str]:
    """What NAME or REPO@REV stands for: a row of the manifest, or a repository and a revision.

    Raises:
        ValueError: if it is neither.
    """
    if '/' in target:
        repo_id, _, revision = target.partition('@')
        return repo_id, revision or 'main'
    row = find_weights(target)
    if row is None:
        raise ValueError(f'no weights {target} in the manifest; `randwire-zoo hub manifest list` shows them. A '
                         'repository is named OWNER/NAME@REVISION')
    return row


def pull(target: str) -> Path:
    """Bring published weights into the Hub's cache, checked, and give their path.

    Raises:
        CheckFailed: if they have been altered.
        HubError: if they cannot be had.
    """
    found = locate(target)
    if isinstance(found, tuple):
        repo_id, revision = found
        with hub_errors(target):
            api = HfApi()
            info = api.model_info(repo_id, revision=revision)
            path = Path(hf_hub_download(repo_id, FILENAME, revision=info.sha))
            expected = _recorded(api, repo_id, str(info.sha), [FILENAME])
        if FILENAME not in expected or _git_or_sha256(path, expected[FILENAME]) != expected[FILENAME]:
            raise CheckFailed(f'{target} has been altered: {path} has sha256 {sha256_of(path)}, the Hub records '
                              f'{expected.get(FILENAME)}')
        return path
    return _checked(fetch, found)


def verify(target: str) -> str:
    """Download published weights afresh, check them in every way there is, and say so in one line.

    Raises:
        CheckFailed: naming what is wrong.
        HubError: if they cannot be had.
    """
    found = locate(target)
    if not isinstance(found, tuple) and found.repo_id is None:
        path = _checked(fetch, found)
        check_row(found)
        _checked(load_model, path, {'architecture': found.architecture, 'num_classes': found.num_classes})
        return f'{found.name}: sha256, wiring and names are right ({path})'
    repo_id, revision = found if isinstance(found, tuple) else (str(found.repo_id), str(found.revision))
    with tempfile.TemporaryDirectory() as temporary:
        with hub_errors(target):
            api = HfApi()
            commit = str(api.model_info(repo_id, revision=revision).sha)
            folder = Path(temporary) / 'folder'
            folder.mkdir()
            for name in required_files(set(api.list_repo_files(repo_id, revision=commit))):
                path = hf_hub_download(repo_id, name, revision=commit, cache_dir=Path(temporary) / 'cache')
                (folder / name).write_bytes(Path(path).read_bytes())
            recorded = _recorded(api, repo_id, commit, sorted(path.name for path in folder.iterdir()))
        for name, expected in recorded.items():
            if (served := _git_or_sha256(folder / name, expected)) != expected:
                raise CheckFailed(f'{repo_id}@{commit} has been altered: {name} is served with hash {served}, the Hub '
                                  f'records {expected}')
        staged = check_folder(folder)
        if not isinstance(found, tuple):
            row = staged.row(repo_id, commit)
            odd = [key for key in ('sha256', 'size', 'graphs_sha256', 'num_classes', 'metrics')
                   if getattr(row, key) != getattr(found, key)]
            if odd:
                raise CheckFailed(f'{found.name}: {repo_id}@{commit} and the manifest differ in ' + ', '.join(
                    f'{key} ({getattr(row, key)}, not {getattr(found, key)})' for key in odd))
        return f'{staged.name}: {repo_id}@{commit} is whole, loads strictly and has the recorded metrics'


def check_row(row: PublishedWeights, online: bool = False) -> None:
    """Check a row of the manifest against the frozen graphs and its file, or against what the Hub records.

    Raises:
        CheckFailed: naming the row and what is wrong.
        HubError: if the Hub is asked and cannot answer.
    """
    if row.architecture not in ARCHITECTURES:
        raise CheckFailed(f'{row.name}: there is no frozen name {row.architecture}')
    wiring = graphs_sha256(load_graphs(row.architecture))
    if row.graphs_sha256 != wiring:
        raise CheckFailed(f'{row.name}: the manifest has graphs {row.graphs_sha256}, the name has {wiring}')
    if row.repo_id is None:
        _checked(check_file, Path(str(row.file)), row.size, row.sha256, row.name)
    elif online:
        with hub_errors(f'{row.name} ({row.place})'):
            recorded = _recorded(HfApi(), row.repo_id, str(row.revision), [FILENAME]).get(FILENAME)
        if recorded != row.sha256:
            raise CheckFailed(f'{row.name}: the Hub records sha256 {recorded}, the manifest {row.sha256}')


def _checked(function: Any, *arguments: Any) -> Any:
    """Call something whose ValueError means that what was published is not what it says."""
    try:
        return function(*arguments)
    except FileNotFoundError as error:
        raise CheckFailed(str(error)) from error
    except ValueError as error:
        raise CheckFailed(str(error)) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stdout is for the row alone


def _content(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256('\n'.join(f'{name} {value}' for name, value in sorted(hashes.items())).encode()).hexdigest()


def _validate(folder: Path) -> None:
    try:
        ModelCard.load(folder / 'README.md').validate()
    except ValueError as error:
        raise CheckFailed(f'the Hub does not accept the card: {" ".join(str(error).split())}') from error


def _commit(api: HfApi, repo_id: str, head: str, staged: Staged) -> str:
    operations = [CommitOperationAdd(name, staged.folder / name) for name in staged.files]
    return str(api.create_commit(
        repo_id, operations, commit_message=f'{staged.name} by randwire-zoo', parent_commit=head).oid)


def _tag(api: HfApi, repo_id: str, commit: str, tag: str) -> None:
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=commit)
    elif tags[tag] != commit:
        # The same content once, something else, and the same content again.
        raise CheckFailed(f'{repo_id}: the tag {tag} is at {tags[tag]}, not at {commit}, and tags are never moved')


def _recorded(api: HfApi, repo_id: str, commit: str, names: list[str]) -> dict[str, str]:
    """What the Hub records of each file: the sha256 of those in LFS, git's hash of the others."""
    recorded = {}
    for info in api.get_paths_info(repo_id, names, revision=commit):
        lfs = getattr(info, 'lfs', None)
        recorded[info.path] = lfs.sha256 if lfs is not None else str(getattr(info, 'blob_id', ''))
    return recorded


def _git_or_sha256(path: Path, like: str) -> str:
    if len(like) == 64:
        return sha256_of(path)
    data = path.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(data) + data, usedforsecurity=False).hexdigest()


def _is_there(api: HfApi, repo_id: str, commit: str, staged: Staged) -> bool:
    """All files of the folder are at the commit, with the same content."""
    recorded = _recorded(api, repo_id, commit, list(staged.files))
    return all(name in recorded and recorded[name] == _git_or_sha256(staged.folder / name, recorded[name])
               for name in staged.files)


def _check_served(row: PublishedWeights, staged: Staged) -> None:
    """Download the weights as a stranger would, and compare hash and logits with the staged ones."""
    with tempfile.TemporaryDirectory() as temporary:
        with hub_errors(row.place):
            weights, _ = (Path(hf_hub_download(str(row.repo_id), name, revision=row.revision, cache_dir=temporary))
                          for name in (FILENAME, CONFIG))
        _checked(check_file, weights, row.size, row.sha256, row.place)
        served, _ = _checked(load_model, weights, staged.config)
        own, _ = load_model(staged.folder / FILENAME, staged.config)
        if not equal_logits(own, served):
            raise CheckFailed(f'{row.place}: what was downloaded computes other logits than what was sent')
