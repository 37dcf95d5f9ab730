"""``python -m mmmpq``, the same as ``mmmpq``."""

from mmmpq.cli import main

main()
