"""Files of Debian packages: fetched with apt, unpacked without root."""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which


def add_source(parser: argparse.ArgumentParser, packages: Sequence[str]) -> None:
    """The option ``--source``."""
    parser.add_argument(
        '--source',
        type=Path,
        help=f'.deb file, or folder with .deb files or what was in them, of '
        f'{", ".join(packages)}; without it they are fetched with apt-get download',
    )


def unpack(packages: Sequence[str], source: Path | None, folder: Path) -> Path:
    """A folder with the files of some packages.

    Args:
        packages (Sequence[str]): Their names.
        source (Path | None): A .deb file, or a folder with .deb files; of those
            named in ``packages`` the contents are unpacked. A folder without any is
            taken as it is. None: fetches all of them.
        folder (Path): An empty folder, to fetch and unpack into.

    Raises:
        FileNotFoundError: ``source``, or a command that is needed, does not exist.
        ValueError: A package cannot be fetched, unpacked or is not in ``source``.
    """
    if source is None:
        archives = folder / 'archives'
        archives.mkdir()
        for package in packages:
            print(f'fetching {package}', flush=True)
            _call('--source', ['apt-get', 'download', '-q', package], archives)
        files = _archives(archives)
    elif source.is_dir():
        files = _archives(source)
        if not files:
            return source
    elif source.is_file():
        files = {source.name.split('_')[0]: source}
    else:
        raise FileNotFoundError(f'--source {source}: does not exist')
    if missing := [p for p in packages if p not in files]:
        raise ValueError(
            f'--source {source}: found packages {", ".join(sorted(files))}; needed is '
            f'{", ".join(missing)} too'
        )
    for package in packages:
        words = ['dpkg-deb', '-x', str(files[package].resolve()), 'files']
        _call(f'--source {files[package]}', words, folder)
    return folder / 'files'


def _archives(folder: Path) -> dict[str, Path]:
    return {path.name.split('_')[0]: path for path in sorted(folder.glob('*.deb'))}


def _call(option: str, words: list[str], folder: Path) -> None:
    if which(words[0]) is None:
        raise FileNotFoundError(
            f'{option}: found no {words[0]}, which Debian and its kin have; elsewhere '
            'give a folder with the unpacked packages'
        )
    process = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        message = (process.stderr or process.stdout).strip().splitlines()[-1:]
        raise ValueError(f'{option}: {" ".join(words)} failed: {" ".join(message)}')
