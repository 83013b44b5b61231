"""What `randwire-zoo freeze --check` says under other versions of networkx: do they still sample the frozen graphs?

    python benchmarks/networkx_versions.py --json docs/data/networkx_versions.json [VERSION …]

Each version is installed into a folder of its own (with uv, or else pip), which needs a package index.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from common import add_json_argument, write_json
from tables import format_table, machine_line, versions_table

VERSIONS = ['3.2', '3.2.1', '3.3', '3.4', '3.4.2', '3.5', '3.6', '3.6.1']
CHECK = """
import networkx, sys
assert networkx.__version__ == sys.argv[1], networkx.__version__
from randwire_zoo.cli import main
sys.exit(main(['freeze', '--check']))
"""


def check(version: str) -> str:
    """What the check prints last."""
    uv = shutil.which('uv')
    installer = [uv, 'pip', 'install', '--python', sys.executable] if uv else [sys.executable, '-m', 'pip', 'install']
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*installer, '-q', '--no-deps', '--target', folder, f'networkx=={version}'], check=True)
        done = subprocess.run([sys.executable, '-c', CHECK, version], capture_output=True, text=True,
                              env={**os.environ, 'PYTHONPATH': folder})
    return (done.stdout + done.stderr).splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networkx', nargs='*', metavar='VERSION', default=VERSIONS)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    record = write_json(args, {version: check(version) for version in args.networkx})
    print(machine_line(record))
    print(format_table(versions_table(record)))


if __name__ == '__main__':
    main()
