"""Whether a packed file gives back the net that was packed."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import nn

from mmmpq.export.onnx import cut
from mmmpq.export.packed import load_packed
from mmmpq.layers import quantized_layers

SIDE = 256  # of images by which outputs are compared, where any size is taken, at most


def check_packed(model: nn.Module, path: Path, shape: Sequence[int]) -> None:
    """Reads a packed file back and compares all quantized weights and outputs.

    Args:
        model: What was packed, in evaluation mode.
        path: Of the file.
        shape: (C, H, W) of an image.

    Raises:
        RuntimeError: They differ.
    """
    packed = load_packed(path)
    pairs = zip(
        quantized_layers(model).items(), quantized_layers(packed).values(), strict=True
    )
    for (name, layer), other in pairs:
        bits = layer.precision.w_bits or 32
        one, two = layer.w_quantizer, other.w_quantizer
        if bits != 32 and not torch.equal(
            one(layer._latent_weight(), bits), two(other._latent_weight(), bits)
        ):
            raise RuntimeError(f'{name} comes back changed: please report this')
    check_outputs(model, packed, shape)


@torch.no_grad()
def check_outputs(model: nn.Module, packed: nn.Module, shape: Sequence[int]) -> None:
    """Compares what two nets give for random images, where they can be cut, and need
    no more than images (as SparK does)."""
    try:
        cut.head_of(model)
    except ValueError:
        return
    most = SIDE if cut.takes_any_size(model) else max(shape)
    sides = [min(side, most) for side in shape[1:]]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, shape[0], *sides, generator=generator).split(1)

    def given_by(net: nn.Module) -> list[torch.Tensor]:
        # One by one, as masked convolutions want them (Guided Anchoring).
        return [x for image in images for x in cut.leaves(cut.network(net, image))]

    try:
        wanted = given_by(model)
    except Exception as error:
        print_log(
            'the outputs of the packed net are not compared, as the net cannot run on '
            f'images alone: {type(error).__name__}: {error}',
            logger='current',
            level=logging.WARNING,
        )
        return
    for one, other in zip(wanted, given_by(packed), strict=True):
        if (one - other).abs().max() > 1e-3 * one.abs().max():
            raise RuntimeError(
                'the packed net gives other outputs than the one that was packed: '
                'please report this'
            )
