"""Sending a staged folder to the Hub as one state, and proving that what is served there is what was sent."""
from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from randwire_zoo.errors import nearest
from randwire_zoo.files import read_json
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import Graph, graphs_sha256
from randwire_zoo.models import ARCHITECTURES, WEIGHTS, find_weights
from randwire_zoo.weights.manifest import (
    FILENAME,
    HubError,
    PublishedWeights,
    check_repo_id,
    fetch,
    hub_errors,
    set_aside,
    sha256_of,
)

from .card import own_text, render_card
from .checks import CARD, CONFIG, GRAPHS, KNOWN, CheckFailed, Staged, check_folder, figures, load_model, missing_files
from .config import differences, from_config
from .probe import PROBE, check_probe
from .transfer import TIMEOUT, bounded

__all__ = ['check_row', 'locate', 'pull', 'push', 'verify']

#: Written by the Hub itself when a repository is made; what belongs to it and to no push.
OWN_FILES = ('.gitattributes',)
#: How the titles of their commits end.
BY = ' by randwire-zoo'
#: Tags of pushes: the weights' tag and the first digits of the content's sha256, counted where content comes back.
PUSHED = re.compile(r'\w+-[0-9a-f]{12}(\.\d+)?', re.ASCII)


@dataclass(frozen=True)
class _Push:
    """What is to be the state of a repository.

    Args:
        staged: The folder.
        repo_id: The repository.
        contents: Every file's content, by name; a path, or the bytes of what is made for the repository.
    """

    staged: Staged
    repo_id: str
    contents: Mapping[str, Path | bytes]

    @property
    def tag(self) -> str:
        """Named after the content."""
        hashes = '\n'.join(f'{name} {self.hash_of(name, 64)}' for name in sorted(self.contents))
        return f'{self.staged.config["pretrained_cfg"]["tag"]}-{hashlib.sha256(hashes.encode()).hexdigest()[:12]}'

    def hash_of(self, name: str, digits: int) -> str:
        """A file's sha256 (64 digits), or git's hash of it (40)."""
        return _hash(self.contents[name], digits)

    def size_of(self, name: str) -> int:
        """A file's size in bytes."""
        content = self.contents[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def is_at(self, tree: Mapping[str, str]) -> bool:
        """Whether a repository with these files and hashes holds exactly this."""
        return tree.keys() == self.contents.keys() and all(
            value == self.hash_of(name, len(value)) for name, value in tree.items())


def push(folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False, overwrite: bool = False,
         pull_request: bool = False, timeout: float = TIMEOUT) -> PublishedWeights | None:
    """Make a staged folder the state of a repository, check what the Hub then serves, and give the manifest's row.

    The state is one commit on the head that was looked at: files of an earlier push that are not in the folder go, and
    nothing of the former state is lost if the push is interrupted. What is there already makes no commit. Each commit
    has a tag that is named after the content and never moved; where content comes back after something else, its new
    commit has the same tag with a number. The folder is only read.

    Args:
        folder: As `staging.stage` made it.
        repo_id: Such as `owner/randwire_ws_c109.in1k`; it is made if it is not there.
        private: Make it a private one; a public one is then left alone.
        dry_run: Check everything here, and send nothing; then there is no row.
        overwrite: Replace whatever is there: another network, files and edits that no push made, though public.
        pull_request: Propose it to whoever owns the repository instead; then there is no row.
        timeout: Seconds for the whole transfer.

    Raises:
        CheckFailed: if the folder, or what is served afterwards, is not what it must be; or if the repository holds
            what is to be left alone.
        HubError: if the Hub cannot be reached or refuses.
        ValueError: if the repository's name is none.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    staged = check_folder(folder)
    card = render_card(folder, repo_id, own_text((folder / CARD).read_text(encoding='utf-8')))
    contents: dict[str, Path | bytes] = {name: folder / name for name in staged.files}
    wanted = _Push(staged, repo_id, {**contents, CARD: card.encode()})
    staged.row(repo_id, '0' * 40)  # which says what no row can hold before anything is sent
    _say(f'{staged.name}: all checks passed; {figures(staged.metrics)}')
    if dry_run:
        for name in wanted.contents:
            _say(f'would send {name} ({wanted.size_of(name):,} bytes, sha256 {wanted.hash_of(name, 64)})')
        _say(f'would commit to {repo_id} and tag the commit {wanted.tag}')
        return None
    if get_token() is None:
        raise HubError(f'{repo_id}: there is no token; set HF_TOKEN or run `hf auth login`')
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        send = partial(_propose, wanted, private) if pull_request else partial(_send, wanted, private, overwrite)
        return bounded(partial(send, Path(temporary)), timeout, repo_id)


def _send(wanted: _Push, private: bool, overwrite: bool, temporary: Path) -> PublishedWeights:
    api, repo_id, staged = HfApi(), wanted.repo_id, wanted.staged
    with _one_head(repo_id):
        _validate(wanted)
        head = _head(api, repo_id, private, overwrite)
        if head is None:
            api.create_repo(repo_id, private=private)
            head = str(api.model_info(repo_id).sha)
        tree = _tree(api, repo_id, head)
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
        commit = head
        if not wanted.is_at(tree):
            if not overwrite:
                _check_replaceable(api, wanted, head, tree, tags, temporary)
            commit = str(api.create_commit(
                repo_id, _operations(wanted, tree), commit_message=_title(staged), parent_commit=head).oid)
        tag = next(name for name in _names(wanted.tag) if tags.get(name, commit) == commit)
        if tag not in tags:
            api.create_tag(repo_id, tag=tag, revision=commit)
        if not wanted.is_at(_tree(api, repo_id, commit)):
            raise CheckFailed(f'{repo_id}@{commit}: the Hub records other files than were sent')
    row = staged.row(repo_id, commit)
    _check_served(row, temporary)
    _say(f'{repo_id}@{commit}: {"nothing to send, " if commit == head else ""}tagged {tag}; downloaded afresh, same '
         'sha256, same logits of the probe')
    return row


def _propose(wanted: _Push, private: bool, temporary: Path) -> None:
    api, repo_id = HfApi(), wanted.repo_id
    with _one_head(repo_id):
        _validate(wanted)
        head = _head(api, repo_id, private, overwrite=False)
        if head is None:
            raise CheckFailed(f'{repo_id}: there is no such repository to propose anything to')
        tree = _tree(api, repo_id, head)
        if wanted.is_at(tree):
            raise CheckFailed(f'{repo_id}@{head} holds exactly this; there is nothing to propose')
        info = api.create_commit(
            repo_id, _operations(wanted, tree), commit_message=_title(wanted.staged), parent_commit=head,
            create_pr=True)
        _say(f'{repo_id}: proposed as {info.pr_url}; when it is merged, push again for the row')


@contextmanager
def _one_head(repo_id: str) -> Iterator[None]:
    """Say that somebody else was faster, where the Hub refuses a commit for it."""
    with hub_errors(repo_id):
        try:
            yield
        except HfHubHTTPError as error:
            if getattr(error.response, 'status_code', None) == 412:
                raise HubError(f'{repo_id}: its head has moved since this began; look at it and run again') from error
            raise


def _head(api: HfApi, repo_id: str, private: bool, overwrite: bool) -> str | None:
    """The commit that a repository is at; None if there is none.

    Raises:
        CheckFailed: if it is public and was to be private.
    """
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return None
    if private and not info.private and not overwrite:
        raise CheckFailed(f'{repo_id} is public, and --private was asked for: nothing was sent. Make it private on the '
                          'Hub, choose another name, or publish openly with --overwrite')
    return str(info.sha)


def _check_replaceable(api: HfApi, wanted: _Push, head: str, tree: Mapping[str, str], tags: Mapping[str, str],
                       temporary: Path) -> None:
    """Leave alone what no push of this network made. What one made that ended before its tag gets the tag.

    Raises:
        CheckFailed: saying what is there.
    """
    repo_id = wanted.repo_id
    if not tree:
        return
    what = '. Nothing was sent; --overwrite replaces it, --pull-request proposes the change'
    untagged = None
    if not (any(PUSHED.fullmatch(name) and commit == head for name, commit in tags.items())
            or (untagged := _without_tag(api, repo_id, head, tree, temporary))):
        changed = any(PUSHED.fullmatch(name) for name in tags)
        names = ', '.join(sorted(tree)[:5]) + (' …' if len(tree) > 5 else '')
        raise CheckFailed(f'{repo_id} has been changed since the last push, by commit {head}{what}' if changed else
                          f'{repo_id} holds what no push of randwire-zoo made ({names}){what}')
    if another := _another_network(wanted, head, tree, temporary):
        raise CheckFailed(f'{repo_id} holds another network, {another}{what}')
    if untagged is not None:
        tag = next(name for name in _names(untagged.tag) if name not in tags)
        api.create_tag(repo_id, tag=tag, revision=head)
        _say(f'{repo_id}@{head}: the push that made this ended before its tag; tagged {tag}')


def _without_tag(api: HfApi, repo_id: str, head: str, tree: Mapping[str, str], temporary: Path) -> _Push | None:
    """The push that made a head and ended before its tag; None if no push made it.

    Its title alone would not do, which anybody can give, nor would files that pass all checks, which a push need not
    have brought.
    """
    title = api.list_repo_commits(repo_id, revision=head)[0].title
    if not title.endswith(BY):
        return None
    try:
        folder, _ = _download(repo_id, repo_id, head, temporary)
        staged = check_folder(folder, repo_id)
    except CheckFailed:
        return None
    made = _Push(staged, repo_id, {name: folder / name for name in staged.files})
    return made if title == _title(staged) and made.is_at(tree) else None


def _title(staged: Staged) -> str:
    return staged.name + BY


def _another_network(wanted: _Push, head: str, tree: Mapping[str, str], temporary: Path) -> str:
    """What tells the network at a head from the one to be sent, by all that describes either; '' for the same one."""
    staged, name = wanted.staged, wanted.staged.name
    paths = [hf_hub_download(wanted.repo_id, file, revision=head, cache_dir=temporary / 'head')
             for file in (CONFIG, GRAPHS) if file in tree]
    try:
        config, graphs = map(read_json, paths)
        there = from_config(config)
        name_there = f'{there.architecture}.{config["pretrained_cfg"]["tag"]}'
        wiring = graphs_sha256(Graph.from_dict(graph) for graph in graphs)
    except (ValueError, KeyError, TypeError):
        return f'no network, not {name}'
    if name_there != name:
        return f'{name_there}, not {name}'
    odd = differences(there, from_config(staged.config))
    if wiring != staged.metadata['graphs_sha256']:
        odd.append('other graphs')
    return f'{name} with {", ".join(odd)}' if odd else ''


def _operations(wanted: _Push, tree: Mapping[str, str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    gone = [CommitOperationDelete(name) for name in tree if name not in wanted.contents]
    return [*gone, *(CommitOperationAdd(name, content) for name, content in wanted.contents.items())]


def _names(tag: str) -> Iterator[str]:
    yield tag
    number = 2
    while True:
        yield f'{tag}.{number}'
        number += 1


def _validate(wanted: _Push) -> None:
    card = wanted.contents[CARD]
    assert isinstance(card, bytes)
    try:
        ModelCard(card.decode()).validate()
    except ValueError as error:
        raise CheckFailed(f'the Hub does not accept the card: {" ".join(str(error).split())}') from error


def locate(target: str) -> PublishedWeights | tuple[str, str]:
    """What NAME or REPO@REV stands for: a row of the manifest, or a repository and a revision.

    Raises:
        ValueError: if it is neither.
    """
    if '/' in target:
        repo_id, _, revision = target.partition('@')
        check_repo_id(repo_id)
        return repo_id, revision or 'main'
    row = find_weights(target)
    if row is None:
        raise ValueError(f'no weights {target} in the manifest' + nearest(
            target, WEIGHTS, '; `randwire-zoo hub manifest list` shows them. A repository is named '
                             'OWNER/NAME@REVISION'))
    return row


def pull(target: str, timeout: float = TIMEOUT) -> Path:
    """Bring published weights into the Hub's cache, checked, and give their path.

    Offline, what is in the cache is compared with the sha256 by which the cache knows it.

    Raises:
        CheckFailed: if they have been altered.
        HubError: if they cannot be had.
    """
    found = locate(target)
    if not isinstance(found, tuple):
        return bounded(partial(_checked, fetch, found), timeout, target)
    return bounded(partial(_pull, target, *found), timeout, target)


def _pull(target: str, repo_id: str, revision: str) -> Path:
    problem = ''
    for _ in range(2):  # what is not right in the cache is fetched once more
        with hub_errors(target):
            path = Path(hf_hub_download(repo_id, FILENAME, revision=revision))  # which notes where a branch is
            if constants.HF_HUB_OFFLINE:
                expected, who = path.resolve().name, 'the cache knows it as'
                if not re.fullmatch(r'[0-9a-f]{64}|[0-9a-f]{40}', expected):
                    raise CheckFailed(f'{target}: this cache does not say which hash {path} must have')
            else:
                expected, who = _tree(HfApi(), repo_id, path.parent.name)[FILENAME], 'the Hub records'
        if (found := _hash(path, len(expected))) == expected:
            return path
        altered = f'{target} has been altered: {path} has hash {found}, {who} {expected}'
        problem = f'{altered}; it was set aside as {_checked(set_aside, path, altered)}'
        _say(problem)
    raise CheckFailed(f'{problem}, and is no better when fetched anew')


def verify(target: str, timeout: float = TIMEOUT) -> str:
    """Download published weights afresh, check them in every way there is, and say so in one line.

    Raises:
        CheckFailed: naming what is wrong.
        HubError: if they cannot be had.
    """
    found = locate(target)
    if not isinstance(found, tuple) and found.repo_id is None:
        path = _checked(fetch, found)
        check_row(found)
        _checked(load_model, path, found.network)
        return f'{found.name}: sha256, wiring and names are right ({path})'
    repo_id, revision = found if isinstance(found, tuple) else (str(found.repo_id), str(found.revision))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder, commit = bounded(partial(_download, target, repo_id, revision, Path(temporary)), timeout, target)
        try:
            staged = check_folder(folder, repo_id)
        except CheckFailed as error:
            raise CheckFailed(str(error).replace(str(folder), f'{repo_id}@{commit}')) from error
        if not isinstance(found, tuple):
            row = staged.row(repo_id, commit)
            # Which weights are a name's default is the manifest's to say.
            odd = [f.name for f in fields(row) if f.name != 'is_default'
                   and getattr(row, f.name) != getattr(found, f.name)]
            if odd:
                raise CheckFailed(f'{found.name}: {repo_id}@{commit} and the manifest differ in ' + ', '.join(
                    f'{key} ({getattr(row, key)}, not {getattr(found, key)})' for key in odd))
        return (f'{staged.name}: {repo_id}@{commit} is whole, loads strictly, computes the logits of its probe and has '
                'the recorded metrics')


def _download(target: str, repo_id: str, revision: str, temporary: Path) -> tuple[Path, str]:
    """Everything that a repository holds, as it is served, once its hashes are those that the Hub records."""
    with hub_errors(target):
        api = HfApi()
        commit = str(api.model_info(repo_id, revision=revision).sha)
        tree = _tree(api, repo_id, commit)
        if missing := missing_files(tree):
            stock = ', such as timm itself pushes' if FILENAME in tree and CONFIG in tree else ''
            raise CheckFailed(f'{repo_id}@{commit} was not made by `randwire-zoo hub push`{stock}: it lacks '
                              f'{", ".join(missing)}, without which nothing about it can be verified')
        if foreign := sorted(set(tree) - set(KNOWN)):
            raise CheckFailed(f'{repo_id}@{commit} holds {", ".join(foreign)}, which no push made')
        folder = temporary / 'folder'
        folder.mkdir()
        for name in tree:
            path = hf_hub_download(repo_id, name, revision=commit, cache_dir=temporary / 'cache')
            (folder / name).write_bytes(Path(path).read_bytes())
    for name, expected in tree.items():
        if (served := _hash(folder / name, len(expected))) != expected:
            raise CheckFailed(f'{repo_id}@{commit} has been altered: {name} is served with hash {served}, the Hub '
                              f'records {expected}')
    return folder, commit


def check_row(row: PublishedWeights, online: bool = False) -> None:
    """Check a row of the manifest against its network and its file, or against what the Hub records.

    Raises:
        CheckFailed: naming the row and what is wrong.
        HubError: if the Hub is asked and cannot answer.
    """
    if row.architecture not in (*ARCHITECTURES, 'randwire'):
        raise CheckFailed(f'{row.name}: there is no frozen name {row.architecture}')
    try:
        model = row.network.create_model(device='meta')
    except (TypeError, ValueError) as error:
        raise CheckFailed(f'{row.name}: {" ".join(str(error).split())}') from error
    wiring = graphs_sha256(load_graphs(row.architecture) if row.architecture in ARCHITECTURES else model.graphs)
    if row.graphs_sha256 != wiring:
        raise CheckFailed(f'{row.name}: the manifest has graphs {row.graphs_sha256}, the name has {wiring}')
    if row.repo_id is None:
        _checked(fetch, row)
    elif online:
        with hub_errors(f'{row.name} ({row.place})'):
            recorded = _tree(HfApi(), row.repo_id, str(row.revision)).get(FILENAME)
        if recorded != row.sha256:
            raise CheckFailed(f'{row.name}: the Hub records sha256 {recorded}, the manifest {row.sha256}')


def _checked(function: Any, *arguments: Any) -> Any:
    """Call something whose ValueError means that what was published is not what it says."""
    try:
        return function(*arguments)
    except (FileNotFoundError, ValueError) as error:
        raise CheckFailed(str(error)) from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # stdout is for the row alone


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """What the Hub records of each file at a commit: the sha256 of those in LFS, git's hash of the others."""
    tree = {}
    for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit):
        if (blob := getattr(entry, 'blob_id', None)) is not None and entry.path not in OWN_FILES:
            lfs = getattr(entry, 'lfs', None)
            tree[entry.path] = lfs.sha256 if lfs is not None else str(blob)
    return tree


def _hash(content: Path | bytes, digits: int) -> str:
    """The sha256 of a content (64 digits), or git's hash of it (40)."""
    if digits == 64:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_of(content)
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b'blob %d\0' % len(data) + data, usedforsecurity=False).hexdigest()


def _check_served(row: PublishedWeights, temporary: Path) -> None:
    """Download the weights as a stranger would, build what the served description says, and compare with the probe."""
    with hub_errors(row.place):
        paths = {name: Path(hf_hub_download(
            str(row.repo_id), name, revision=row.revision, cache_dir=temporary / 'served'))
            for name in (FILENAME, CONFIG, PROBE)}
    if (found := sha256_of(paths[FILENAME])) != row.sha256:
        raise CheckFailed(f'{row.place} has been altered: {paths[FILENAME]} has sha256 {found} and must have '
                          f'{row.sha256}')
    network = _checked(from_config, read_json(paths[CONFIG]))
    _checked(check_probe, _checked(load_model, paths[FILENAME], network), network, paths[PROBE])
