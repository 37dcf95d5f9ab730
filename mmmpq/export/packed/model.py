"""The packed checkpoint: one safetensors file from which a net is rebuilt, exactly.

Its layout is written down in docs/export.md.
"""

import json
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmmpq.export.integers import check_calibrated, weight_integers, weight_levels
from mmmpq.export.packed.bits import compress, pack
from mmmpq.export.packed.config import rebuildable, to_json
from mmmpq.export.packed.file import (
    FORMAT,
    INDEX,
    VERSION,
    digest_of,
    digest_of_all,
    read_packed,
)
from mmmpq.export.packed.index import HUFFMAN, name_of
from mmmpq.fileio import atomic_write
from mmmpq.layers import quantized_layers
from mmmpq.layers.base import QuantLayer
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.models.loading import Folded
from mmmpq.version import __version__


def save_packed(
    model: nn.Module,
    path: str | Path,
    config: Config | Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    dataset_meta: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a net of fixed precision as a packed checkpoint.

    Args:
        model: Fine-tuned; its BatchNorms may have been folded.
        path: Of the file, whose name should end in ``.safetensors``.
        config: The config that ``model`` was built from: ``model``, ``default_scope``,
            where it is not a part of ``model`` ``data_preprocessor``, and
            ``test_dataloader``, whose pipeline feeds the net.
        meta: Of the policy: what it was found for, and its costs.
        dataset_meta: Names of classes and the like, for the toolbox's inferencers.

    Returns:
        The file.

    Raises:
        ValueError: A layer that is not of fixed precision, or not calibrated; a config
            that cannot be written as JSON.
    """
    layers = quantized_layers(model)
    searched = [n for n, layer in layers.items() if not isinstance(layer, QuantLayer)]
    if searched or not layers:
        raise ValueError(
            f'packed: accepted is a net of fixed precision; found '
            f'{f"candidates in {searched[0]}" if searched else "no quantized layer"}'
        )
    check_calibrated(layers, inputs=False)
    tensors, index = _tensors(model, layers)
    index['digests'] = {name: digest_of(tensors[name]) for name in tensors}
    text = json.dumps(index, separators=(',', ':')).encode()
    compressed = torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8)
    meta = dict(meta or {})
    costs = meta.pop('costs', {})
    meta.pop('quant', None)  # it is in the config
    policy = {n: list(layer.precision) for n, layer in layers.items()}
    model_config = to_json(rebuildable(config, getattr(model, 'quantized_with', None)))
    metadata = dict(
        format=FORMAT,
        version=str(VERSION),
        mmmpq=__version__,
        config=model_config,
        config_digest=sha256(model_config.encode()).hexdigest(),
        policy=to_json(dict(layers=policy, meta=meta), 'policy'),
        costs=to_json(costs, 'policy.meta.costs'),
        dataset_meta=to_json(dict(dataset_meta or {}), 'dataset_meta'),
    )
    metadata['digest'] = digest_of_all(metadata, compressed)
    data = safetensors.torch.save({INDEX: compressed, **tensors}, metadata)
    return atomic_write(path, data)


def load_packed(path: str | Path) -> nn.Module:
    """Rebuilds the net of a packed checkpoint, in evaluation mode, on the CPU.

    Its outputs equal those of the net that was saved, bit for bit where the same
    kernels compute them. No other file is read, and no pickle. It has ``cfg`` and
    ``dataset_meta``: the toolboxes' inferencers take it.

    Args:
        path: File or URL.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, cut short or changed, of a newer format, or for a
            model that this environment does not know.
    """
    return read_packed(path).build()


def load_from_packed(filename: str, map_location: Any = None) -> dict[str, Any]:
    """What MMEngine loads for ``load_from='x.safetensors'``."""
    packed = read_packed(filename)
    state = packed.state_dict()
    if map_location is not None and not callable(map_location):
        for name, tensor in state.items():
            state[name] = tensor.to(map_location)
    meta = dict(dataset_meta=packed.dataset_meta) if packed.dataset_meta else {}
    return dict(state_dict=state, meta=meta)


def _tensors(
    model: nn.Module, layers: Mapping[str, QuantLayer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The file's tensors and its index."""
    names = {module: name for name, module in model.named_modules()}
    every = model.named_modules(remove_duplicate=False)
    state = model.state_dict()
    holders = {key.rpartition('.')[0] for key in state}
    aliases = {n: names[m] for n, m in every if n in holders and n != names[m]}
    state = {k: v for k, v in state.items() if k.rpartition('.')[0] not in aliases}
    tensors, weights = {}, {}
    first: dict[int, str] = {}
    for name, layer in layers.items():
        bits = layer.precision.w_bits
        if bits == 32:
            continue
        owner = first.setdefault(id(layer.weight), name)
        if owner != name:
            aliases[f'{name}.weight'] = f'{owner}.weight'
            del state[f'{name}.weight']
            continue
        weight = outputs_first(state.pop(f'{name}.weight'), layer.out_dim)
        entry = weights[name] = dict(
            bits=bits, shape=list(weight.shape), dtype=name_of(weight.dtype)
        )
        if layer.out_dim:
            entry['out_dim'] = layer.out_dim
        if bits == 0:
            continue
        entry['levels'] = weight_levels(layer)
        q, scale, zero = weight_integers(layer)
        codes = (q.short() - entry['levels'][0]).cpu()
        tensors[f'{name}.weight'] = pack(codes, bits)
        if len(smaller := compress(codes)) < len(tensors[f'{name}.weight']):
            tensors[f'{name}.weight'], entry['coding'] = smaller, HUFFMAN
        for key in [k for k in state if k.startswith(f'{name}.w_quantizer.')]:
            del state[key]
        state[f'{name}.w_quantizer.scale'] = scale
        if zero is not None:
            state[f'{name}.w_quantizer.zero'] = zero
    remainder: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        kind = name_of(tensor.dtype)
        remainder.setdefault(kind, {})[name] = tensor.detach().cpu()
    for kind, entries in remainder.items():
        flat = [tensor.reshape(-1) for tensor in entries.values()]
        tensors[f'remainder.{kind}'] = torch.cat(flat)
    modules = model.named_modules()
    return tensors, dict(
        weights=weights,
        remainder={
            kind: {name: list(tensor.shape) for name, tensor in entries.items()}
            for kind, entries in remainder.items()
        },
        aliases=aliases,
        folded={n: m.layer for n, m in modules if isinstance(m, Folded)},
    )
