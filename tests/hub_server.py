"""A Hugging Face Hub of models on 127.0.0.1, for the real huggingface_hub to push to and pull from.

It keeps everything in memory, speaks what the client asks for when it creates, commits to, tags, lists and downloads
model repositories, and breaks in the ways in which the network and the Hub do, where a test asks for that. The client
reads its settings when it is imported, so that it runs in processes of their own:

    with HubServer() as server:
        commit = server.create('someone/model', {'config.json': b'{}'})
        subprocess.run([sys.executable, 'download.py', commit], env=server.environment(tmp_path), check=True)
        assert len(server.log) == 2
"""
from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_PATTERNS = ('*.bin', '*.png', '*.safetensors')
LFS_SIZE = 10_000_000
GITATTRIBUTES = ''.join(f'{pattern} filter=lfs diff=lfs merge=lfs -text\n' for pattern in LFS_PATTERNS).encode()
DATE = '2026-01-01T00:00:00.000Z'
# The client writes what it receives, and counts it as received, in pieces of this size: a download that breaks off
# earlier starts again, a later one goes on with Range.
CLIENT_CHUNK = 10 * 1024 ** 2

_REPO = r'(?P<repo>(?:[^/]+/)?[^/]+)'
_RESOLVE = re.compile(rf'/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)')
_LFS = re.compile(rf'/{_REPO}\.git/info/lfs/objects/(?P<action>batch|verify)')
_UPLOAD = re.compile(r'/_lfs/(?P<oid>[0-9a-f]{64})')
_MODEL = re.compile(
    rf'/api/models/{_REPO}(?:/(?P<refs>refs)|/(?P<action>commits?|paths-info|preupload|revision|tag|tree)'
    r'/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?')
_SETTINGS = re.compile(r'(?i:HF_|HUGGING_?FACE_|TRANSFORMERS_OFFLINE$|(http|https|all)_proxy$)')


class Refusal(Exception):
    """The server says no: a status, a message and what the client reads as the reason."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace('_', '-'): value for name, value in headers.items()}


class _Died(Exception):
    """The server stops in the middle of this request."""


@dataclass(frozen=True)
class _Answer:
    """What is sent: cut is how many bytes of the body are, where the connection breaks off."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass(frozen=True)
class _Request:
    command: str
    path: str
    query: str
    user: str | None
    body: bytes
    range: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class _Blob:
    """A file's content, and what git and git-lfs call it."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The text that git itself keeps of a file in LFS."""
        return (f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n'
                f'size {len(self.content)}\n').encode()

    @cached_property
    def oid(self) -> str:
        """The id of git's blob, which is the pointer where the file is in LFS."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b'blob %d\0' % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class _Commit:
    oid: str
    title: str
    blobs: Mapping[str, _Blob]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Every file and folder as the tree listing has it, by path."""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in self.blobs.items():
            entries[path] = {'type': 'file', 'oid': blob.oid, 'size': len(blob.content), 'path': path}
            if blob.lfs:
                entries[path]['lfs'] = {
                    'oid': blob.sha256, 'size': len(blob.content), 'pointerSize': len(blob.pointer)}
            for folder in map(str, list(PurePosixPath(path).parents)[:-1]):
                inside = [(name, self.blobs[name].oid) for name in sorted(self.blobs) if name.startswith(f'{folder}/')]
                tree = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
                entries[folder] = {'type': 'directory', 'oid': tree, 'size': 0, 'path': folder}
        return dict(sorted(entries.items()))


@dataclass
class _Repo:
    id: str
    private: bool
    gated: bool
    history: list[_Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    proposals: list[dict[str, bytes]] = field(default_factory=list)

    @property
    def head(self) -> _Commit:
        return self.history[-1]

    def commit(self, revision: str) -> _Commit:
        if revision == 'main':
            return self.head
        oid = self.tags.get(revision, revision)
        for commit in self.history:
            if commit.oid == oid:
                return commit
        raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')


class HubServer:
    """A Hub in a thread of this process; a context manager.

    Namespaces are the names of the tokens' users, and each user writes to the own one alone. There is one branch,
    main. A repository that a client creates starts with a commit of `.gitattributes`, as on the Hub.

    Faults are off until a test sets them, at any time and while clients run:

    - `read_only`: namespaces that nobody may write to, 403. Writing to another user's namespace is 403, an unknown
      token 401, a private repository 404 (RepoNotFound) to all but its owner, and a gated one's files 403 (GatedRepo)
      to others, 401 (GatedRepo) without a token.
    - `forbidden`: repositories of which every request is answered 403, without a reason.
    - `cut_downloads`: so many of the next downloads break off in the middle; the connection closes. Of what is larger
      than 10 MiB they send more than that, so that the client goes on with Range (see `ranges`); all else it starts
      again.
    - `short_bodies`: so many of the next downloads send half, with a Content-Length that agrees with the half.
    - `flip_byte`: a file is served with one byte changed; all hashes stay as they were.
    - `die_before_commit`: the server stops where it receives the next commit, after the LFS upload; `start` starts it
      again, at the same address and with everything uploaded.
    - `moves_before_commit`: as many of the next commits find that another one landed just before them. `move_head`
      lands one at once.
    - `delete`: a repository or a revision is gone.
    - `silent`: requests are logged and not answered, or those alone that start with this text, such as 'PUT'; stopping
      the server closes their connections.

    Attributes:
        url: The address, without a slash at the end; the port is free when the server starts for the first time.
        log: Every request, as 'METHOD /path?query', in the order in which they came.
        ranges: The Range header of every download that had one.
        tokens: Each token's user.
    """

    def __init__(self) -> None:
        self.url = ''
        self.log: list[str] = []
        self.ranges: list[str] = []
        self.tokens = {'hf_test_token': 'someone'}
        self.read_only: set[str] = set()
        self.forbidden: set[str] = set()
        self.cut_downloads = 0
        self.short_bodies = 0
        self.die_before_commit = False
        self.moves_before_commit = 0
        self.silent: bool | str = False
        self._flipped: set[tuple[str, str]] = set()
        self._repos: dict[str, _Repo] = {}
        self._announced: set[str] = set()
        self._lfs: dict[str, bytes] = {}
        self._made = 0
        self._lock = threading.RLock()
        self._life = threading.Lock()
        self._listener: _Listener | None = None

    def __enter__(self) -> HubServer:
        self.start()
        return self

    def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, at the old address where there was one."""
        with self._life:
            assert self._listener is None, 'the server runs'
            self._listener = _Listener(self, urlsplit(self.url).port or 0)
            self.url = f'http://127.0.0.1:{self._listener.server_port}'
            threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Close the listening socket and all connections, whatever they are at. What is stored stays."""
        with self._life:
            if self._listener is not None:
                self._listener.stop()
                self._listener = None

    def environment(self, home: Path, token: str | None = 'hf_test_token', **more: str) -> dict[str, str]:
        """The environment of a client process: this one's, with this server as its Hub and no other setting of the Hub.

        Args:
            home: HF_HOME, where the client's cache is; an empty or missing folder is a machine that has nothing yet.
            token: What the client is logged in with; None if it is not.
            more: Further variables.
        """
        kept = {name: value for name, value in os.environ.items() if not _SETTINGS.match(name)}
        login = {} if token is None else {'HF_TOKEN': token}
        return {
            **kept, **login, 'HF_ENDPOINT': self.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_TELEMETRY': '1',
            'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'HF_HUB_DISABLE_UPDATE_CHECK': '1', **more}

    def create(self, repo_id: str, files: Mapping[str, bytes], private: bool = False, gated: bool = False) -> str:
        """Make a repository with one commit of exactly these files, and give the commit."""
        with self._lock:
            assert repo_id not in self._repos, f'{repo_id} exists'
            self._repos[repo_id] = _Repo(repo_id, private, gated)
            return self._land(repo_id, 'initial commit', {path: _stored(path, data) for path, data in files.items()})

    def tag(self, repo_id: str, name: str, revision: str = 'main') -> None:
        """Set a tag, also one that exists."""
        with self._lock:
            self._repos[repo_id].tags[name] = self._repos[repo_id].commit(revision).oid

    def move_head(self, repo_id: str, files: Mapping[str, bytes] | None = None, title: str = 'Move') -> str:
        """Land another commit on main, and give it: these files come to those there are, by default a new one."""
        with self._lock:
            files = files if files is not None else {f'moved-{self._made}.txt': b'moved\n'}
            new = {path: _stored(path, data) for path, data in files.items()}
            return self._land(repo_id, title, {**self._repos[repo_id].head.blobs, **new})

    def delete(self, repo_id: str, revision: str | None = None) -> None:
        """Remove a repository, or from it one tag, or one commit and its tags.

        The commit that main is at leaves another one with the same files, as squashing the history does.
        """
        with self._lock:
            repo = self._repos[repo_id]
            if revision is None:
                del self._repos[repo_id]
            elif repo.tags.pop(revision, None) is None:
                gone = repo.commit(revision)
                if gone is repo.head:
                    self._land(repo_id, gone.title, gone.blobs)
                repo.history.remove(gone)
                repo.tags = {name: oid for name, oid in repo.tags.items() if oid != gone.oid}

    def flip_byte(self, repo_id: str, path: str) -> None:
        """Serve the file, of every revision, with the byte in the middle changed; the server's hashes do not know."""
        with self._lock:
            self._flipped.add((repo_id, path))

    def repositories(self) -> list[str]:
        """The ids of all repositories, sorted."""
        with self._lock:
            return sorted(self._repos)

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        """What is stored, by path. No flipped byte is in it."""
        with self._lock:
            return {path: blob.content for path, blob in self._repos[repo_id].commit(revision).blobs.items()}

    def commits(self, repo_id: str) -> list[str]:
        """The history of main, oldest first."""
        with self._lock:
            return [commit.oid for commit in self._repos[repo_id].history]

    def proposals(self, repo_id: str) -> list[dict[str, bytes]]:
        """The files that each pull request proposes, by path."""
        with self._lock:
            return list(self._repos[repo_id].proposals)

    def is_private(self, repo_id: str) -> bool:
        """Whether others do not see it."""
        with self._lock:
            return self._repos[repo_id].private

    def clear(self) -> None:
        """Forget everything but the address, as a new server at it."""
        with self._lock:
            fresh = HubServer()
            kept = {name: getattr(self, name) for name in ('url', '_lock', '_life', '_listener')}
            vars(self).update({**vars(fresh), **kept})

    def tags(self, repo_id: str) -> dict[str, str]:
        """The commit of each tag."""
        with self._lock:
            return dict(self._repos[repo_id].tags)

    def _land(self, repo_id: str, title: str, blobs: Mapping[str, _Blob]) -> str:
        self._made += 1
        history = self._repos[repo_id].history
        what = [repo_id, self._made, title, [commit.oid for commit in history[-1:]],
                sorted((path, blob.oid) for path, blob in blobs.items())]
        oid = hashlib.sha1(json.dumps(what).encode()).hexdigest()
        history.append(_Commit(oid, title, dict(sorted(blobs.items()))))
        self._lfs.update((blob.sha256, blob.content) for blob in blobs.values() if blob.lfs)
        return oid

    def _take(self, fault: str) -> bool:
        """Whether this request is one of the next that a fault's counter is for; it counts down."""
        left: int = getattr(self, fault)
        setattr(self, fault, max(left - 1, 0))
        return left > 0

    # What follows answers requests, one at a time: only receiving and sending are concurrent.

    def _answer(self, command: str, target: str, headers: Message, body: bytes) -> _Answer:
        split = urlsplit(target)
        with self._lock:
            if command == 'PUT' and (found := _UPLOAD.fullmatch(split.path)):
                return self._upload(found['oid'], body)
            token = headers.get('Authorization', '').removeprefix('Bearer ')
            if token and token not in self.tokens:
                raise Refusal(401, 'Invalid credentials in Authorization header')
            request = _Request(
                command, split.path, split.query, self.tokens.get(token), body, headers.get('Range'))
            fixed = {'POST /api/repos/create': self._create, 'POST /api/validate-yaml': self._validate_yaml,
                     'GET /api/whoami-v2': self._whoami}.get(f'{command} {split.path}')
            if fixed is not None:
                return fixed(request)
            if found := _RESOLVE.fullmatch(split.path):
                if command in ('GET', 'HEAD'):
                    repo = self._visible(request, found['repo'])
                    return self._resolve(request, repo, unquote(found['revision']), unquote(found['path']))
            elif command == 'POST' and (found := _LFS.fullmatch(split.path)):
                repo = self._proposable(request, found['repo'], uploads=True)
                return self._batch(request, repo) if found['action'] == 'batch' else self._verify(request)
            elif found := _MODEL.fullmatch(split.path):
                action = found['refs'] or found['action'] or 'revision'
                revision, path = unquote(found['revision'] or 'main'), unquote(found['path'] or '')
                reading = {
                    'GET commits': self._commits, 'GET refs': self._refs, 'GET revision': self._revision,
                    'GET tree': self._tree, 'POST paths-info': self._paths_info}.get(f'{command} {action}')
                writing = {
                    'POST commit': self._commit, 'POST preupload': self._preupload,
                    'POST tag': self._tag}.get(f'{command} {action}')
                if reading is not None:
                    return reading(request, self._visible(request, found['repo']), revision, path)
                if writing is not None:
                    return writing(request, self._proposable(request, found['repo']), revision)
            raise Refusal(404, f'tests/hub_server.py does not know {command} {split.path}')

    def _visible(self, request: _Request, repo_id: str) -> _Repo:
        repo = self._repos.get(repo_id)
        if repo_id in self.forbidden:
            raise Refusal(403, 'Forbidden')
        if repo is None or (repo.private and request.user != _namespace(repo_id)):
            raise Refusal(404, 'Repository not found', 'RepoNotFound')
        return repo

    def _writable(self, request: _Request, repo_id: str) -> _Repo:
        repo = self._visible(request, repo_id)
        self._check_writing(request, _namespace(repo_id))
        return repo

    def _proposable(self, request: _Request, repo_id: str, uploads: bool = False) -> _Repo:
        """Everybody who is logged in may propose to what he sees, and upload what he proposes."""
        if request.user is not None and (uploads or 'create_pr' in parse_qs(request.query)):
            return self._visible(request, repo_id)
        return self._writable(request, repo_id)

    def _check_writing(self, request: _Request, namespace: str) -> None:
        if request.user is None:
            raise Refusal(401, 'Invalid username or password.')
        if request.user != namespace:
            raise Refusal(403, f'You don\'t have the rights to write to the namespace "{namespace}"')
        if namespace in self.read_only:
            raise Refusal(403, 'Forbidden: you must use a write token to upload to a repository')

    def _whoami(self, request: _Request) -> _Answer:
        if request.user is None:
            raise Refusal(401, 'Invalid username or password.')
        role = 'read' if request.user in self.read_only else 'write'
        token = {'displayName': 'test', 'role': role, 'createdAt': DATE}
        return _json({'type': 'user', 'id': request.user, 'name': request.user, 'fullname': request.user, 'orgs': [],
                      'auth': {'type': 'access_token', 'accessToken': token}})

    def _create(self, request: _Request) -> _Answer:
        asked = request.json
        namespace = asked.get('organization') or request.user or ''
        self._check_writing(request, namespace)
        if asked.get('type', 'model') != 'model':
            raise Refusal(400, 'tests/hub_server.py has models only')
        repo_id = f'{namespace}/{asked["name"]}'
        url = f'{self.url}/{repo_id}'
        if repo_id in self._repos:
            message = 'You already created this model repo'
            return _json({'error': message, 'url': url}, 409, {'X-Error-Message': message})
        private = asked.get('visibility') == 'private' or bool(asked.get('private'))
        self.create(repo_id, {'.gitattributes': GITATTRIBUTES}, private)
        return _json({'url': url, 'name': repo_id, 'private': private})

    def _validate_yaml(self, request: _Request) -> _Answer:
        bare = not request.json['content'].startswith('---')
        warnings = [{'message': 'empty or missing yaml metadata in repo card'}] if bare else []
        return _json({'errors': [], 'warnings': warnings})

    def _preupload(self, request: _Request, repo: _Repo, revision: str) -> _Answer:
        head = repo.commit(revision)
        files = []
        for file in request.json['files']:
            path, old = file['path'], head.blobs.get(file['path'])
            lfs = _in_lfs(path, file['size'], base64.b64decode(file['sample']))
            files.append({'path': path, 'uploadMode': 'lfs' if lfs else 'regular', 'shouldIgnore': False,
                          **({'oid': old.etag} if old else {})})
        return _json({'files': files, 'commitOid': head.oid})

    def _batch(self, request: _Request, repo: _Repo) -> _Answer:
        objects = []
        for asked in request.json['objects']:
            known: dict[str, Any] = {'oid': asked['oid'], 'size': asked['size']}
            if asked['oid'] not in self._lfs:
                self._announced.add(asked['oid'])
                known['actions'] = {
                    'upload': {'href': f'{self.url}/_lfs/{asked["oid"]}'},
                    'verify': {'href': f'{self.url}/{repo.id}.git/info/lfs/objects/verify'}}
            objects.append(known)
        return _json({'transfer': 'basic', 'objects': objects})

    def _upload(self, oid: str, body: bytes) -> _Answer:
        if oid not in self._announced:
            raise Refusal(403, 'Request has expired')
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, 'The Content-SHA256 you specified did not match what we received')
        self._lfs[oid] = body
        return _Answer(b'')

    def _verify(self, request: _Request) -> _Answer:
        asked = request.json
        if asked['oid'] not in self._lfs or len(self._lfs[asked['oid']]) != asked['size']:
            raise Refusal(404, f'No LFS object {asked["oid"]} of {asked["size"]} bytes')
        return _json({})

    def _commit(self, request: _Request, repo: _Repo, revision: str) -> _Answer:
        if self._take('moves_before_commit'):
            self.move_head(repo.id)
        if self.die_before_commit:
            self.die_before_commit = False
            raise _Died
        if revision != 'main':
            raise Refusal(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        if not repo.head.oid.startswith(header['value'].get('parentCommit', '')):
            raise Refusal(412, 'A commit has happened since. Please refresh and try again.')
        blobs = dict(repo.head.blobs)
        for operation in operations:
            key, value = operation['key'], operation['value']
            path = value['path'].rstrip('/')
            if key == 'file':
                blobs[path] = _Blob(base64.b64decode(value['content']), lfs=False)
            elif key == 'lfsFile':
                if value['oid'] not in self._lfs:
                    raise Refusal(400, f'An LFS pointer pointed to a file that does not exist: {path}')
                blobs[path] = _Blob(self._lfs[value['oid']], lfs=True)
            elif key in ('deletedFile', 'deletedFolder'):
                gone = [name for name in blobs
                        if (name.startswith(f'{path}/') if key == 'deletedFolder' else name == path)]
                if not gone:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", 'EntryNotFound')
                for name in gone:
                    del blobs[name]
            else:
                raise Refusal(400, f'tests/hub_server.py does not know the operation {key}')
        if 'create_pr' in parse_qs(request.query):
            repo.proposals.append({path: blob.content for path, blob in blobs.items()})
            url = f'{self.url}/{repo.id}/discussions/{len(repo.proposals)}'
            oid = hashlib.sha1(url.encode()).hexdigest()
            return _json({'success': True, 'commitOid': oid, 'commitUrl': f'{self.url}/{repo.id}/commit/{oid}',
                          'pullRequestUrl': url})
        oid = self._land(repo.id, header['value']['summary'], blobs)
        return _json({'success': True, 'commitOid': oid, 'commitUrl': f'{self.url}/{repo.id}/commit/{oid}'})

    def _tag(self, request: _Request, repo: _Repo, revision: str) -> _Answer:
        oid, name = repo.commit(revision).oid, request.json['tag']
        if name in repo.tags:
            raise Refusal(409, 'Tag reference exists already.')
        repo.tags[name] = oid
        return _json({})

    def _refs(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        return _json({
            'branches': [{'name': 'main', 'ref': 'refs/heads/main', 'targetCommit': repo.head.oid}], 'converts': [],
            'tags': [{'name': name, 'ref': f'refs/tags/{name}', 'targetCommit': oid}
                     for name, oid in sorted(repo.tags.items())]})

    def _commits(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        until = repo.history.index(repo.commit(revision))
        return _json([
            {'id': commit.oid, 'title': commit.title, 'message': '', 'date': DATE,
             'authors': [{'user': _namespace(repo.id)}]} for commit in repo.history[until::-1]])

    def _revision(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        commit = repo.commit(revision)
        siblings = []
        for name, blob in commit.blobs.items():
            sibling: dict[str, Any] = {'rfilename': name}
            if 'blobs' in parse_qs(request.query):
                sibling.update(blobId=blob.oid, size=len(blob.content))
                if blob.lfs:
                    sibling['lfs'] = {
                        'sha256': blob.sha256, 'size': len(blob.content), 'pointerSize': len(blob.pointer)}
            siblings.append(sibling)
        return _json({
            'id': repo.id, 'modelId': repo.id, 'author': _namespace(repo.id), 'sha': commit.oid, 'createdAt': DATE,
            'lastModified': DATE, 'private': repo.private, 'gated': 'manual' if repo.gated else False,
            'disabled': False, 'downloads': 0, 'likes': 0, 'tags': [], 'siblings': siblings})

    def _tree(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        commit, prefix = repo.commit(revision), f'{path}/' if path else ''
        entries = [entry for entry in commit.entries().values() if entry['path'].startswith(prefix)]
        if path and not entries:
            raise Refusal(404, f'{path} does not exist on "{commit.oid}"', 'EntryNotFound')
        if parse_qs(request.query).get('recursive') not in (['true'], ['True'], ['1']):
            entries = [entry for entry in entries if '/' not in entry['path'][len(prefix):]]
        return _json(entries)

    def _paths_info(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        entries = repo.commit(revision).entries()
        paths = parse_qs(request.body.decode()).get('paths', [])
        return _json([entries[name] for name in paths if name in entries])

    def _resolve(self, request: _Request, repo: _Repo, revision: str, path: str) -> _Answer:
        if repo.gated and request.user != _namespace(repo.id):
            if request.user is None:
                raise Refusal(401, f'Access to model {repo.id} is restricted. You must have access to it and be '
                                   'authenticated to access it. Please log in.', 'GatedRepo')
            raise Refusal(403, f'Access to model {repo.id} is restricted and you are not in the authorized list. Visit '
                               f'{self.url}/{repo.id} to ask for access.', 'GatedRepo')
        commit = repo.commit(revision)
        blob = commit.blobs.get(path)
        if blob is None:
            raise Refusal(404, 'Entry not found', 'EntryNotFound', X_Repo_Commit=commit.oid)
        headers = {'X-Repo-Commit': commit.oid, 'ETag': f'"{blob.etag}"', 'Accept-Ranges': 'bytes',
                   'Content-Type': 'application/octet-stream'}
        if blob.lfs:
            headers |= {'X-Linked-ETag': f'"{blob.etag}"', 'X-Linked-Size': str(len(blob.content))}
        content, status = blob.content, 200
        if request.command == 'HEAD':
            return _Answer(content, status, headers)
        if (repo.id, path) in self._flipped and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
        start = 0
        if request.range is not None:
            self.ranges.append(request.range)
            start, end = _span(request.range, len(content))
            content, status = content[start:end], 206
        cut = None
        if content and self._take('cut_downloads'):
            sure = CLIENT_CHUNK if len(content) > CLIENT_CHUNK else 0
            cut = sure + (len(content) - sure) // 2
        elif content and self._take('short_bodies'):
            content = content[:len(content) // 2]
        if status == 206:
            headers['Content-Range'] = f'bytes {start}-{start + len(content) - 1}/{len(blob.content)}'
        return _Answer(content, status, headers, cut)


def _namespace(repo_id: str) -> str:
    return repo_id.partition('/')[0]


def _in_lfs(path: str, size: int, sample: bytes) -> bool:
    named = any(fnmatch.fnmatchcase(PurePosixPath(path).name, pattern) for pattern in LFS_PATTERNS)
    return size > 0 and (named or size > LFS_SIZE or not _is_text(sample))


def _is_text(sample: bytes) -> bool:
    if b'\0' in sample:
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The client's sample, the first 512 bytes, may end in the middle of a character.
        return error.reason == 'unexpected end of data'
    return True


def _stored(path: str, content: bytes) -> _Blob:
    """A file as a client's push would have stored it."""
    return _Blob(content, _in_lfs(path, len(content), content[:512]))


def _span(text: str, size: int) -> tuple[int, int]:
    """The first byte that a Range header asks for and the one after the last."""
    found = re.fullmatch(r'bytes=(\d*)-(\d*)', text)
    first, last = found.groups() if found else ('', '')
    start = int(first) if first else max(size - int(last or 0), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise Refusal(416, f'{text} of {size} bytes', Content_Range=f'bytes */{size}')
    return start, end


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(json.dumps(value).encode(), status, {'Content-Type': 'application/json', **(headers or {})})


class _Listener(ThreadingHTTPServer):
    """The sockets: it knows its connections, so that stopping it ends them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: HubServer, port: int) -> None:
        self.hub = hub
        self.stopped = threading.Event()
        self._connections: set[Any] = set()
        super().__init__(('127.0.0.1', port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # Headers and body are two writes: with Nagle's algorithm the second waits for the client.
    disable_nagle_algorithm = True
    server: _Listener

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def _handle(self) -> None:
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        hub.log.append(f'{self.command} {self.path}')
        if hub.silent is True or (hub.silent and hub.log[-1].startswith(hub.silent)):
            self.server.stopped.wait()
            self.close_connection = True
            return
        try:
            answer = hub._answer(self.command, self.path, self.headers, body)
        except Refusal as refusal:
            code = {'X-Error-Code': refusal.code} if refusal.code else {}
            message = refusal.message.encode('ascii', 'replace').decode()
            answer = _json({'error': refusal.message}, refusal.status,
                           {'X-Error-Message': message, **code, **refusal.headers})
        except _Died:
            self.close_connection = True
            hub.stop()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(answer.body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(memoryview(answer.body)[:answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _handle
