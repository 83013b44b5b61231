"""The Hub's real client with a Hub of the test's own: in this process, or in one of its own.

The client reads its settings when it is imported, which a test changes while it runs its commands (starting a process
costs seconds). This package reads its manifest when it is imported, too: for another one a process has to be started.
"""
from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hub_server import HubServer
from huggingface_hub import RepoCard, __version__, constants
from packaging.version import Version

TOKEN = 'hf_test_token'

HELPERS = '''
import contextlib, hashlib, io, json, os, sys
import huggingface_hub.constants as constants
import timm, torch
from randwire_zoo.cli import main

def command(*arguments):
    """A command of randwire-zoo: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return {'code': code, 'out': out.getvalue(), 'err': err.getvalue()}

def logits(name, **kwargs):
    """The sha256 of a fixed batch's logits; or the error's type and message."""
    try:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=True, **kwargs).eval()
    except Exception as error:
        return [type(error).__name__, str(error)]
    size = model.pretrained_cfg['input_size'][1:]
    batch = torch.randn(2, model.in_chans, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model.forward_features(batch) if kwargs.get('num_classes') else model(batch)
    return hashlib.sha256(output.numpy().tobytes()).hexdigest()
'''

LOOP = '''
for line in sys.stdin:
    asked, results = json.loads(line), []
    constants.HF_HUB_CACHE = asked['cache']
    os.environ.pop('HF_TOKEN', None)
    if asked['token'] is not None:
        os.environ['HF_TOKEN'] = asked['token']
    with contextlib.redirect_stdout(sys.stderr):
        exec(asked['code'])
    print(json.dumps(results), flush=True)
'''


class HubClient:
    """What it is asked to do, it does in this process, with caches of the asker's own.

    Args:
        server: Its Hub.
    """

    def __init__(self, server: HubServer) -> None:
        self.server = server

    @contextmanager
    def asking(self, home: Path, token: str | None = TOKEN) -> Iterator[None]:
        """This process asks that Hub, with home as its cache."""
        if Version(__version__) < Version('1'):
            pytest.skip('the sessions of huggingface_hub before 1.0 do not follow a change of its settings')
        with pytest.MonkeyPatch.context() as patch:
            for name in ('HF_HUB_OFFLINE', 'HF_TOKEN'):
                patch.delenv(name, raising=False)
            if token is not None:
                patch.setenv('HF_TOKEN', token)
            for name, value in {
                    'ENDPOINT': self.server.url, 'HF_HUB_OFFLINE': False, 'HF_HUB_CACHE': str(home),
                    'HUGGINGFACE_CO_URL_TEMPLATE': self.server.url + '/{repo_id}/resolve/{revision}/{filename}',
                    'HF_TOKEN_PATH': str(home / 'token'), 'HF_HUB_DISABLE_XET': True,
                    'HF_HUB_DISABLE_TELEMETRY': True, 'HF_HUB_DISABLE_PROGRESS_BARS': True}.items():
                patch.setattr(constants, name, value)
            if 'https://huggingface.co' in inspect.getsource(RepoCard.validate):  # as older ones
                patch.setattr(RepoCard, 'validate', lambda *_, **__: None)
            yield

    def run(self, home: Path, code: str, token: str | None = TOKEN) -> list[Any]:
        """Run code that appends to `results`, with home as the Hub's cache, and give what it appended."""
        results: list[Any] = []
        with self.asking(home, token):
            exec(HELPERS + code, {'results': results})
        line = json.dumps(results)
        assert TOKEN not in line
        return list(json.loads(line))

    def hub(self, home: Path, *commands: list[object], token: str | None = TOKEN) -> list[dict[str, Any]]:
        """Run commands of `randwire-zoo hub` one after the other."""
        lines = [f'results.append(command("hub", *{json.dumps([str(part) for part in command])}))'
                 for command in commands]
        return self.run(home, '\n'.join(lines), token)


class HubProcess(HubClient):
    """A context manager; what it is asked to do, it does in a process of its own.

    Args:
        server: Its Hub.
        folder: Where it runs.
        variables: More of its environment.
    """

    def __init__(self, server: HubServer, folder: Path, **variables: str) -> None:
        super().__init__(server)
        self.folder = folder
        self._log = (folder / 'client.log').open('w+')
        self._process = subprocess.Popen(
            [sys.executable, '-c', HELPERS + LOOP], env=server.environment(folder, OMP_NUM_THREADS='1', **variables),
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def __enter__(self) -> HubProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._log.seek(0)
        assert TOKEN not in self._log.read()
        self._log.close()

    def run(self, home: Path, code: str, token: str | None = TOKEN) -> list[Any]:
        """The same in that process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({'code': code, 'cache': str(home), 'token': token}) + '\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self.folder / 'client.log').read_text()
        assert TOKEN not in line
        return list(json.loads(line))
