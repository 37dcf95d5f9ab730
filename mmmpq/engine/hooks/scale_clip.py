"""Distribution reshaping of weights by Scale-Clip."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmpq.engine.batches import unwrapped
from mmmpq.layers import PLAIN, QuantizedLayer
from mmmpq.quantizers import scale_clip_range
from mmmpq.registry import HOOKS


@HOOKS.register_module()
class ScaleClipHook(Hook):
    """w ← clip(w, ±T) with T = k · mean|w|, of every conv and linear layer, each step.

    It drives the weights of a float (or searched) net towards a uniform distribution,
    which low widths lose least on.

    Source: Low-bit Quantization Needs Good Distribution, 2019, arXiv 1908.01477.

    Args:
        k: Well below 2 the weights collapse to 0, well above they stay bell-shaped.
    """

    def __init__(self, k: float = 2.0) -> None:
        if not k > 0:
            raise ValueError(f'ScaleClipHook.k: found {k!r}; accepted are numbers > 0')
        self.k = k

    @torch.no_grad()
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        for module in unwrapped(runner).modules():
            quantizable = isinstance(module, (QuantizedLayer, *PLAIN))
            if quantizable and module.weight.requires_grad:
                limit = scale_clip_range(module.weight, self.k)
                module.weight.clamp_(-limit, limit)
