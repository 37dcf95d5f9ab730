"""``mmmpq check`` from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmmpq.cli import command

if __name__ == '__main__':
    command('check')
