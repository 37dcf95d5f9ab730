"""Reading packed checkpoints: all that was written, checked, or an error."""

import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from mmengine.config import ConfigDict
from mmengine.fileio import get
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmmpq.export.integers import from_integers
from mmmpq.export.packed.bits import unpack
from mmmpq.export.packed.config import from_json
from mmmpq.export.packed.safetensors import check_tensors, parse
from mmmpq.export.packed.untrusted import check_types, without_files
from mmmpq.models.loading import prepare
from mmmpq.policy import Policy, Precision
from mmmpq.version import __version__

FORMAT = 'mmmpq-packed'
VERSION = 1
INDEX = 'index'
LARGEST_INDEX = 2**28  # bytes of its JSON; some 220 per layer are usual


def name_of(dtype: torch.dtype) -> str:
    """'float32' of torch.float32."""
    return str(dtype).removeprefix('torch.')


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DTYPES = {name_of(dtype): dtype for dtype in FLOATS}


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint, read and checked.

    Attributes:
        path (str): Where it was read.
        config (dict): ``default_scope`` and ``model``.
        policy (Policy): With its costs in ``meta``.
        dataset_meta (dict): Names of classes and the like.
        index (dict): See docs/export.md.
        tensors (dict): The file's own tensors.
    """

    path: str
    config: dict
    policy: Policy
    dataset_meta: dict
    index: dict
    tensors: dict[str, Tensor]

    def state_dict(self) -> OrderedDict[str, Tensor]:
        """The model's, weights as floats on the grid of their integers.

        Its ``_metadata`` tells a model of mmmpq what to check and to prepare.
        """
        state = {}
        for dtype, entries in self.index['remainder'].items():
            flat = self.tensors[f'remainder.{dtype}']
            sizes = [math.prod(shape) for shape in entries.values()]
            parts = flat.split(sizes)
            for (name, shape), part in zip(entries.items(), parts, strict=True):
                state[name] = part.reshape(shape).clone()
        for name, entry in self.index['weights'].items():
            self._weight(name, entry, state)
        modules: dict[str, list[str]] = {}
        for key in state:
            modules.setdefault(key.rpartition('.')[0], []).append(key)
        for alias, name in self.index['aliases'].items():
            for key in modules.get(name, ()):
                state[alias + key[len(name) :]] = state[key]
        result = OrderedDict(state)
        packed = dict(
            layers={n: list(p) for n, p in self.policy.layers.items()},
            meta=self.policy.meta,
            folded=self.index['folded'],
        )
        result._metadata = {'': dict(version=1, packed=packed)}
        return result

    def _weight(self, name: str, entry: dict, state: dict[str, Tensor]) -> None:
        dtype, shape = DTYPES[entry['dtype']], entry['shape']
        if not entry['bits']:  # of a skipped block
            state[f'{name}.weight'] = torch.zeros(shape, dtype=dtype)
            return
        codes = unpack(self.tensors[f'{name}.weight'], entry['bits'], shape)
        grid = f'{name}.w_quantizer'
        scale = state[f'{grid}.scale']
        zero = state.setdefault(f'{grid}.zero', torch.zeros_like(scale))
        q = codes.to(torch.int16) + entry['levels'][0]
        state[f'{name}.weight'] = from_integers(q, scale, zero, dtype)
        state[f'{grid}.bounds'] = torch.tensor(entry['levels'], dtype=torch.int32)
        state[f'{grid}.signed'] = torch.tensor(1, dtype=torch.int8)

    def build(self) -> nn.Module:
        """The net itself, see :func:`mmmpq.load_packed`."""
        config = dict(self.config['model'])
        scope = self.config['default_scope']
        check_types(config, scope, self.path)
        if 'quant' in config:
            config['quant'] = dict(config['quant'], policy=self.policy)
        with DefaultScope.overwrite_default_scope(scope), without_files():
            model = MODELS.build(ConfigDict(config))
        state = self.state_dict()
        prepare(model, state._metadata['']['packed'])
        with torch.no_grad():
            for name, tensor in model.state_dict(keep_vars=True).items():
                if name in state:
                    tensor.data = tensor.data.to(state[name].dtype)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f'{self.path}: its tensors do not fit the model that its config '
                f'builds here: {error}'
            ) from error
        return model.eval()


def read_packed(path: str | Path) -> Packed:
    """Reads and checks a packed checkpoint.

    Raises:
        FileNotFoundError, ValueError: As of :func:`mmmpq.load_packed`.
    """
    path = str(path)
    if '://' not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(f'packed checkpoint: found no file {path}')
    data = get(path) if '://' in path else Path(path).expanduser().read_bytes()
    metadata, places = parse(data, path)
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path} is a safetensors file, but no packed checkpoint; accepted is what '
            'tools/export.py --format packed wrote'
        )
    version = metadata.get('version', '')
    if not version.isdecimal() or int(version) > VERSION:
        raise ValueError(
            f'{path} has format version {version!r}; this mmmpq ({__version__}) reads '
            f'up to {VERSION}'
        )
    check_tensors(data, places, path)
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f'{path} is damaged: {error}') from error
    compressed = tensors.pop(INDEX, None)
    digest = metadata.pop('digest', None)
    if (
        compressed is None
        or compressed.dtype != torch.uint8
        or digest_of_all(metadata, compressed) != digest
    ):
        raise ValueError(
            f'{path}: its metadata or its tensor {INDEX!r} is not what was written'
        )
    index = _parsed(_inflated(compressed, path), path)
    digests = index['digests']
    for name in dict.fromkeys([*digests, *tensors]):
        if name not in tensors or digest_of(tensors[name]) != digests.get(name):
            raise ValueError(f'{path}: the tensor {name!r} is not what was written')
    policy = _parsed(metadata['policy'], path)
    return Packed(
        path=path,
        config=_parsed(metadata['config'], path),
        policy=Policy(
            {n: Precision(*p) for n, p in policy['layers'].items()},
            {**policy['meta'], 'costs': _parsed(metadata['costs'], path)},
        ),
        dataset_meta=_parsed(metadata['dataset_meta'], path),
        index=index,
        tensors=tensors,
    )


def _inflated(compressed: Tensor, path: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(compressed.numpy().tobytes(), LARGEST_INDEX)
    except zlib.error as error:
        raise ValueError(f'{path}: its tensor {INDEX!r} is damaged: {error}') from error
    if not stream.eof:
        raise ValueError(
            f'{path}: its tensor {INDEX!r} is cut short, or opens to more than '
            f'{LARGEST_INDEX} bytes'
        )
    return text


def _parsed(text: str | bytes, path: str) -> Any:
    try:
        return from_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: it holds JSON that is none: {error}') from error


def digest_of(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a tensor's bytes."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256(data).hexdigest()[:16]


def digest_of_all(metadata: Mapping[str, str], index: Tensor) -> str:
    """SHA-256 of the metadata, as JSON with sorted keys, and the index behind it."""
    text = json.dumps(metadata, sort_keys=True, separators=(',', ':'))
    return sha256(text.encode() + index.numpy().tobytes()).hexdigest()
