"""Copies between the host and a device that the host does not wait for."""

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """``x``, a tensor of the host, on ``device``."""
    if device.type != 'cuda':
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class Fetch:
    """A tensor on its way to the host: it sets out here, and :meth:`result` waits.

    Args:
        x: A tensor that nobody changes afterwards.
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x.detach()
        self._arrived: torch.cuda.Event | None = None
        if x.is_cuda:
            self._x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._x.copy_(x.detach(), non_blocking=True)
            self._arrived = torch.cuda.current_stream(x.device).record_event()

    def result(self) -> Tensor:
        """The tensor on the host, once it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._x.cpu()
