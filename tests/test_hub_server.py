"""The real huggingface_hub against tests/hub_server.py: what other tests rely on, in processes of the client's own."""
from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_server import GITATTRIBUTES, HubServer

MIB = 1024 ** 2
MODEL = 'someone/model'
CONFIG = b'{"architecture": "randwire_ws_pico"}\n'
CARD = b'---\nlicense: apache-2.0\n---\n# A model\n'
# No two places of it are the same, so that a wrong Range would be seen.
WEIGHTS = array('I', range(256)).tobytes()

PRELUDE = '''
import json, sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_hf_file_metadata, \\
    hf_hub_download, hf_hub_url, snapshot_download

api = HfApi()

def failure(call, *arguments, **options):
    """The exception that a call raises: its class, the server's status if it answered, and the message."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, 'response', None), 'status_code', None), str(error)]

def say(value):
    print(json.dumps(value))

def additions(files):
    return [CommitOperationAdd(path, content.encode('latin-1')) for path, content in files.items()]
'''


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


def client(server: HubServer, home: Path, script: str, *arguments: object, token: str | None = 'hf_test_token') -> Any:
    """Run a script in a process of the client's, with JSON arguments; give the value that it says last."""
    done = subprocess.run(
        [sys.executable, '-c', f'{PRELUDE}\narguments = json.loads(sys.argv[1])\n{script}', json.dumps(arguments)],
        env=server.environment(home, token), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def latin(files: dict[str, bytes]) -> dict[str, str]:
    return {path: content.decode('latin-1') for path, content in files.items()}


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def requests(server: HubServer, start: str) -> list[str]:
    return [request for request in server.log if request.startswith(start)]


def raw(server: HubServer, path: str, **headers: str) -> http.client.HTTPResponse:
    """The answer to a request on a connection of its own, without the client."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request('GET', path, headers=headers)
    return connection.getresponse()


def test_a_push_is_one_commit_and_comes_back_the_same(server: HubServer, tmp_path: Path) -> None:
    in_lfs = {
        'model.safetensors': WEIGHTS, 'figures/graph.png': b'\x89PNG\0', 'text.bin': b'text\n', 'bytes': b'\xff\xfe'}
    files = {'README.md': CARD, 'config.json': CONFIG, **in_lfs}
    for path, content in files.items():
        (tmp_path / 'push' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'push' / path).write_bytes(content)
    said = client(server, tmp_path / 'home', '''
model, folder, names = arguments
url = api.create_repo(model, private=True)
parent = api.repo_info(model).sha
commit = api.create_commit(
    model, [CommitOperationAdd(name, f'{folder}/{name}') for name in names], commit_message='Push',
    parent_commit=parent)
api.create_tag(model, tag='v1', revision=commit.oid)
info = api.model_info(model, revision='v1', files_metadata=True)
refs = api.list_repo_refs(model)
snapshot = snapshot_download(model, revision=commit.oid)
checked = api.verify_repo_checksums(model, revision=commit.oid)
say({
    'user': api.whoami()['name'], 'repo': url.repo_id, 'exists': failure(api.create_repo, model),
    'again': api.create_repo(model, exist_ok=True).repo_id, 'parent': parent, 'commit': commit.oid, 'url': commit,
    'info': [info.id, info.sha, info.private, info.gated],
    'sizes': {file.rfilename: file.size for file in info.siblings},
    'tree': sorted(entry.path for entry in api.list_repo_tree(model, recursive=True, revision='v1')),
    'top': sorted(entry.path for entry in api.list_repo_tree(model)),
    'hashes': {file.path: file.lfs.sha256 if file.lfs else file.blob_id
               for file in api.get_paths_info(model, [*names, 'missing'], revision='v1')},
    'refs': [[ref.name, ref.target_commit] for ref in refs.branches + refs.tags],
    'history': [entry.commit_id for entry in api.list_repo_commits(model)], 'snapshot': snapshot,
    'checked': [checked.checked_count, checked.mismatches, checked.missing_paths, checked.extra_paths]})
''', MODEL, str(tmp_path / 'push'), list(files))
    commit, everything = said['commit'], {'.gitattributes': GITATTRIBUTES, **files}
    assert server.repositories() == [MODEL] and server.files(MODEL) == everything
    assert server.commits(MODEL) == [said['parent'], commit] == said['history'][::-1]
    assert all(re.fullmatch('[0-9a-f]{40}', oid) for oid in server.commits(MODEL)) and said['parent'] != commit
    assert server.files(MODEL, said['parent']) == {'.gitattributes': GITATTRIBUTES}
    assert server.tags(MODEL) == {'v1': commit} and said['refs'] == [['main', commit], ['v1', commit]]
    assert (said['user'], said['repo'], said['again']) == ('someone', MODEL, MODEL)
    assert said['exists'][:2] == ['HfHubHTTPError', 409] and said['url'] == f'{server.url}/{MODEL}/commit/{commit}'
    assert said['info'] == [MODEL, commit, True, False]
    assert said['sizes'] == {path: len(content) for path, content in everything.items()}
    assert said['tree'] == sorted([*everything, 'figures'])
    assert said['top'] == [path for path in said['tree'] if '/' not in path]
    assert said['hashes'] == {
        path: hashlib.sha256(content).hexdigest() if path in in_lfs
        else hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest() for path, content in files.items()}
    assert said['checked'] == [len(everything), [], [], []]
    assert folder_files(Path(said['snapshot'])) == everything
    assert len(requests(server, 'PUT')) == len(in_lfs)
    assert len(requests(server, f'POST /api/models/{MODEL}/commit/')) == 1

    server.log.clear()
    download = 'say([hf_hub_download(*arguments[0], revision=revision) for revision in arguments[1:]][-1])'
    path = client(server, tmp_path / 'home', download, [MODEL, 'model.safetensors'], commit)
    assert Path(path).read_bytes() == WEIGHTS and server.log == []
    client(server, tmp_path / 'home', download, [MODEL, 'model.safetensors'], 'v1')
    assert server.log == [f'HEAD /{MODEL}/resolve/v1/model.safetensors']


def test_a_stale_parent_and_a_tag_that_exists_are_refused(server: HubServer, tmp_path: Path) -> None:
    old = server.create(MODEL, {'config.json': b'{}'})
    new = server.move_head(MODEL)
    server.tag(MODEL, 'v1', old)
    server.moves_before_commit = 1
    said = client(server, tmp_path, '''
model, old, new, files = arguments
race = failure(api.create_commit, model, additions(files), commit_message='Push', parent_commit=new)
say([race, failure(api.create_commit, model, additions(files), commit_message='Push', parent_commit=old),
     failure(api.create_tag, model, tag='v1'), failure(api.create_tag, model, tag='v2', revision='0' * 40)])
''', MODEL, old, new, latin({'config.json': CONFIG, 'model.safetensors': WEIGHTS}))
    assert [failed[:2] for failed in said] == [
        ['HfHubHTTPError', 412], ['HfHubHTTPError', 412], ['HfHubHTTPError', 409], ['RevisionNotFoundError', 404]]
    assert 'A commit has happened since' in said[0][2]
    assert len(server.commits(MODEL)) == 3 and server.files(MODEL)['config.json'] == b'{}'
    assert server.tags(MODEL) == {'v1': old} and len(requests(server, 'PUT')) == 1


def test_a_commit_changes_what_it_names_and_a_push_of_the_same_is_none(server: HubServer, tmp_path: Path) -> None:
    same = {'config.json': CONFIG, 'model.safetensors': WEIGHTS}
    server.create(MODEL, {**same, 'old.txt': b'', 'older/a.txt': b'', 'older/b/c.txt': b'', 'oldest.txt': b''})
    heads = client(server, tmp_path, '''
model, same = arguments
removals = [CommitOperationDelete('old.txt'), CommitOperationDelete('older/')]
say([api.create_commit(model, [*removals, *additions(same)], commit_message='Tidy').oid,
     api.create_commit(model, additions(same), commit_message='Again').oid])
''', MODEL, latin(same))
    assert server.files(MODEL) == {**same, 'oldest.txt': b''}
    assert len(server.commits(MODEL)) == 2 and heads == [server.commits(MODEL)[-1]] * 2
    assert requests(server, 'PUT') == []


def test_what_is_not_there_or_not_allowed_is_the_clients_own_exception(server: HubServer, tmp_path: Path) -> None:
    server.tokens |= {'hf_other': 'other', 'hf_reader': 'reader'}
    server.read_only = {'reader'}
    files = {'config.json': CONFIG}
    commits = {name: server.create(f'someone/{name}', files, private=name == 'private', gated=name == 'gated')
               for name in ('model', 'gone', 'squashed', 'private', 'gated')}
    server.create('reader/model', files)
    server.delete('someone/gone')
    server.delete('someone/squashed', commits['squashed'])
    said = client(server, tmp_path, '''
def get(name, file='config.json', **options):
    return failure(hf_hub_download, f'someone/{name}', file, **options)

squashed, = arguments
other = HfApi(token='hf_other')
say({
    'no repository': get('nothing'), 'gone': get('gone'), 'gone, its info': failure(api.model_info, 'someone/gone'),
    'no file': get('model', 'model.safetensors'), 'no revision': get('model', revision='v9'),
    'no such commit': get('squashed', revision=squashed), 'info at it': failure(
        api.model_info, 'someone/squashed', revision=squashed),
    'private': get('private', token=False), 'private, listed': failure(other.model_info, 'someone/private'),
    'private, own': get('private'), 'gated': get('gated', token='hf_other'), 'gated, no token': get(
        'gated', token=False), 'gated, listed': failure(other.list_repo_files, 'someone/gated'),
    'gated, own': get('gated'), 'squashed, main': get('squashed'),
    'wrong token': get('model', token='hf_wrong'), 'who': failure(api.whoami, token='hf_wrong'),
    'not mine': failure(api.create_repo, 'other/model'), 'no token': failure(
        api.create_repo, 'someone/new', token=False),
    'commit to another': failure(
        other.create_commit, 'someone/model', additions({'a': 'b'}), commit_message='Push'),
    'read-only': failure(api.create_tag, 'reader/model', tag='v1', token='hf_reader')})
''', commits['squashed'])
    assert {name: failed and failed[:2] for name, failed in said.items()} == {
        'no repository': ['RepositoryNotFoundError', 404], 'gone': ['RepositoryNotFoundError', 404],
        'gone, its info': ['RepositoryNotFoundError', 404], 'no file': ['RemoteEntryNotFoundError', 404],
        'no revision': ['RevisionNotFoundError', 404], 'no such commit': ['RevisionNotFoundError', 404],
        'info at it': ['RevisionNotFoundError', 404], 'private': ['RepositoryNotFoundError', 404],
        'private, listed': ['RepositoryNotFoundError', 404], 'private, own': None, 'gated': ['GatedRepoError', 403],
        'gated, no token': ['GatedRepoError', 401], 'gated, listed': None, 'gated, own': None, 'squashed, main': None,
        'wrong token': ['HfHubHTTPError', 401], 'who': ['HfHubHTTPError', 401], 'not mine': ['HfHubHTTPError', 403],
        'no token': ['HfHubHTTPError', 401], 'commit to another': ['HfHubHTTPError', 403],
        'read-only': ['HfHubHTTPError', 403]}
    assert 'write token' in said['read-only'][2] and 'namespace "other"' in said['not mine'][2]
    assert server.files('someone/model') == files and server.tags('reader/model') == {}
    assert server.repositories() == [
        'reader/model', 'someone/gated', 'someone/model', 'someone/private', 'someone/squashed']


def test_a_download_that_breaks_off_starts_again_or_goes_on(server: HubServer, tmp_path: Path) -> None:
    large = array('I', range(12 * MIB // 4)).tobytes()
    commit = server.create(MODEL, {'small.safetensors': WEIGHTS, 'large.safetensors': large})
    for name, content, ranges in (
            ('small.safetensors', WEIGHTS, []), ('large.safetensors', large, [f'bytes={10 * MIB}-'])):
        server.cut_downloads = 1
        server.log.clear()
        path = client(server, tmp_path, 'say(hf_hub_download(*arguments[:2], revision=arguments[2]))', MODEL, name,
                      commit)
        assert Path(path).read_bytes() == content and server.cut_downloads == 0 and server.ranges == ranges
        url = f'/{MODEL}/resolve/{commit}/{name}'
        assert server.log == [f'HEAD {url}', f'GET {url}', f'GET {url}']
    # The client would also end with the right bytes if the server sent all of them again.
    answer = raw(server, url, Range=f'bytes={10 * MIB}-')
    assert (answer.status, answer.read()) == (206, large[10 * MIB:])
    assert answer.getheader('Content-Range') == f'bytes {10 * MIB}-{12 * MIB - 1}/{12 * MIB}'
    assert raw(server, url, Range='bytes=2-5').read() == large[2:6]
    assert raw(server, url, Range='bytes=-3').read() == large[-3:]
    assert raw(server, url, Range=f'bytes={12 * MIB}-').status == 416


def test_the_client_notices_a_short_file_and_not_a_wrong_byte(server: HubServer, tmp_path: Path) -> None:
    server.create(MODEL, {'short.safetensors': WEIGHTS, 'wrong.safetensors': WEIGHTS})
    server.short_bodies = 1
    server.flip_byte(MODEL, 'wrong.safetensors')
    short, path, info, mismatches = client(server, tmp_path, '''
short = failure(hf_hub_download, arguments[0], 'short.safetensors')
path = hf_hub_download(arguments[0], 'wrong.safetensors')
info, = api.get_paths_info(arguments[0], 'wrong.safetensors')
say([short, path, info.lfs.sha256, api.verify_repo_checksums(arguments[0]).mismatches])
''', MODEL)
    assert short[:2] == ['OSError', None]
    assert f'should be of size {len(WEIGHTS)} but has size {len(WEIGHTS) // 2}' in short[2]
    assert len(requests(server, f'GET /{MODEL}/resolve/main/short.safetensors')) == 1
    assert not [name for name in folder_files(tmp_path) if 'short' in name or 'incomplete' in name]
    wrong = Path(path).read_bytes()
    assert len(wrong) == len(WEIGHTS) and sum(a != b for a, b in zip(wrong, WEIGHTS, strict=True)) == 1
    assert info == hashlib.sha256(WEIGHTS).hexdigest() and server.files(MODEL)['wrong.safetensors'] == WEIGHTS
    assert [mismatch['path'] for mismatch in mismatches] == ['wrong.safetensors']


def test_a_server_that_dies_before_the_commit_leaves_all_as_it_was(server: HubServer, tmp_path: Path) -> None:
    before, url = {'config.json': b'{}'}, server.url
    head = server.create(MODEL, before)
    push = '''
say([failure(api.create_commit, arguments[0], additions(arguments[1]), commit_message='Push',
             parent_commit=arguments[2]), failure(api.whoami)])
'''
    files = {'config.json': CONFIG, 'model.safetensors': WEIGHTS}
    server.die_before_commit = True
    died, after = client(server, tmp_path, push, MODEL, latin(files), head)
    assert died[0] == 'RemoteProtocolError' and after[0] == 'ConnectError'
    assert server.log[-1] == f'POST /api/models/{MODEL}/commit/main' and len(requests(server, 'PUT')) == 1
    assert server.commits(MODEL) == [head] and server.files(MODEL) == before

    server.start()
    assert server.url == url and client(server, tmp_path, push, MODEL, latin(files), head) == [None, None]
    assert server.commits(MODEL)[0] == head and server.files(MODEL) == files
    assert len(requests(server, 'PUT')) == 1  # what was uploaded before it died is still there


def test_a_silent_server_does_not_answer_and_a_stopped_one_hangs_up(server: HubServer, tmp_path: Path) -> None:
    server.create(MODEL, {'config.json': CONFIG})
    idle, waiting = (http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60) for _ in range(2))
    idle.request('GET', f'/api/models/{MODEL}')
    assert json.load(idle.getresponse())['id'] == MODEL
    server.log.clear()
    server.silent = True
    said = client(server, tmp_path, '''
say([failure(get_hf_file_metadata, hf_hub_url(arguments[0], 'config.json'), timeout=0.5),
     failure(api.model_info, arguments[0], timeout=0.5)])
''', MODEL)
    assert [failed[0] for failed in said] == ['ReadTimeout', 'ReadTimeout']
    assert server.log == [f'HEAD /{MODEL}/resolve/main/config.json', f'GET /api/models/{MODEL}']
    waiting.request('GET', f'/api/models/{MODEL}')
    server.stop()
    server.silent = False
    with pytest.raises(ConnectionError):
        waiting.getresponse()
    with pytest.raises(ConnectionError):
        idle.request('GET', f'/api/models/{MODEL}')
        idle.getresponse()


def test_a_client_knows_this_server_and_no_other_hub(
        server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('HF_HUB_OFFLINE', 'HF_HUB_CACHE', 'HUGGING_FACE_HUB_TOKEN', 'https_proxy', 'HTTP_PROXY'):
        monkeypatch.setenv(name, '1')
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', 'kept')
    env = server.environment(tmp_path, None, HF_HUB_ETAG_TIMEOUT='2')
    assert {name: value for name, value in env.items() if re.match('(?i)hf_|hugging|https?_proxy', name)} == {
        'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path), 'HF_HUB_ETAG_TIMEOUT': '2',
        'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_UPDATE_CHECK': '1'}
    assert env['RANDWIRE_ZOO_CACHE'] == 'kept' and server.environment(tmp_path)['HF_TOKEN'] == 'hf_test_token'
