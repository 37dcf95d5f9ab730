"""Launches of Triton kernels that cost the host little."""

from typing import Any

import torch
from torch import Tensor


class Kernel:
    """A kernel of Triton, called with what it was compiled for.

    Triton looks at every argument of every launch to find the compiled form, which
    takes longer than most of these kernels. Here that is a look at the first tensors.

    Args:
        function: ``triton.jit``'s. Its integers have their types in its signature, and
            Triton is told to compile nothing anew for their values.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self._compiled: dict[tuple, Any] = {}

    def __call__(
        self,
        programs: int,
        tensors: tuple[Tensor, ...],
        *others: Tensor | int,
        constants: tuple,
    ) -> None:
        """Launches ``programs`` of it.

        Args:
            tensors: The first arguments, of any dtype and place in memory.
            others: The next ones: tensors of one dtype, which start where an allocator
                starts them unless Triton is told to compile nothing anew for that, and
                integers.
            constants: The last ones.
        """
        device = tensors[0].device
        if device.type == 'cuda' and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(programs, tensors, *others, constants=constants)
        addresses = [t.data_ptr() for t in tensors]
        # What Triton compiles anew for.
        key = (
            device.index,
            constants,
            *(
                (t.dtype, address % 16)
                for t, address in zip(tensors, addresses, strict=True)
            ),
        )
        compiled = self._compiled.get(key)
        if compiled is None:
            args = *tensors, *others, *constants
            self._compiled[key] = self.function[(programs,)](*args)
            return
        # Of an address it need not ask what device it is on.
        others = [t.data_ptr() if isinstance(t, Tensor) else t for t in others]
        compiled[programs, 1, 1](*addresses, *others, *constants)
