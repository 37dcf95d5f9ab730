"""Lets Python find ``mmcv._ext`` in ``mmcv_ext/`` when nobody else has it.

``mmcv_ext/mmmpq-mmcv-ext.pth``, put into an environment's site-packages, does the same
as ``install`` whenever an interpreter starts: then mmdet may be imported before mmmpq,
as the toolboxes' own scripts, spawned workers and ranks do.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any


class MmcvExtFinder:
    """The last finder to be asked: a compiled ``mmcv._ext`` is never shadowed."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != 'mmcv._ext':
            return None
        folder = Path(__file__).with_name('mmcv_ext')
        return spec_from_file_location(name, folder / '__init__.py')


def install() -> None:
    """Adds the finder behind all others, unless the interpreter started with it."""
    names = [getattr(finder, '__name__', '') for finder in sys.meta_path]
    if MmcvExtFinder.__name__ not in names:
        sys.meta_path.append(MmcvExtFinder)
