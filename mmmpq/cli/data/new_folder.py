"""Makes a folder all at once: whoever looks sees the whole of it or nothing."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

RECORD = 'made_with.json'


def make_folder(out: Path, settings: dict, fill: Callable[[Path], None]) -> None:
    """Fills a temporary folder beside ``out`` and renames it.

    The settings are kept in the folder, so that a second call with the same ones
    does nothing and one with others replaces the folder.

    Args:
        out (Path): Folder to make.
        settings (dict): What determines the content, as JSON values.
        fill (Callable[[Path], None]): Writes the content into the folder given.

    Raises:
        SystemExit: If ``out`` exists and was not made by this converter.
    """
    record = out / RECORD
    if record.is_file():
        previous = json.loads(record.read_text())
        if previous == settings:
            print(f'{out} is up to date')
            return
        if previous.get('converter') != settings['converter']:
            sys.exit(f"error: --out {out}: was made by '{previous.get('converter')}'")
    elif out.exists():
        sys.exit(f'error: --out {out}: exists and was not made by this converter')
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f'.{out.name}.new.{os.getpid()}')
    old = out.with_name(f'.{out.name}.old.{os.getpid()}')
    try:
        new.mkdir()
        fill(new)
        (new / RECORD).write_text(json.dumps(settings, indent=2) + '\n')
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    print(f'made {out}')
