"""What was made of each layer, in a folder, so that a run that was killed goes on."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmmpq.fileio import atomic_save, read_checkpoint


class KeptLayers(dict):
    """Tensors of layers by name, each written to a file of its own as it is set.

    Args:
        folder: Of these files; those that are there are read.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        for path in sorted(folder.glob('*.pth')):
            checkpoint = read_checkpoint(path)
            super().__setitem__(checkpoint['meta']['layer'], checkpoint['state_dict'])

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        state = {key: tensor.contiguous() for key, tensor in tensors.items()}
        file = self.folder / f'{len(self):04d}.pth'
        atomic_save(dict(state_dict=state, meta=dict(layer=name)), file)
        super().__setitem__(name, state)
