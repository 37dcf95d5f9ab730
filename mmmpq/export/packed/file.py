"""Reading packed checkpoints: all that was written, checked, or an error."""

import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import get
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmmpq.export.integers import from_integers
from mmmpq.export.packed.config import from_json
from mmmpq.export.packed.index import DTYPES, check_index, codes_of, stored_elements
from mmmpq.export.packed.safetensors import check_tensors, parse
from mmmpq.export.packed.untrusted import check_texts, check_types, fewer_parameters
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.models.loading import load_state, prepare
from mmmpq.policy import QUANT, Policy, Precision
from mmmpq.version import __version__

FORMAT = 'mmmpq-packed'
VERSION = 2
INDEX = 'index'
GROWTH = 64  # bytes of the index's JSON for one of the file, at most; 10 are usual
PARAMETERS = 8, 2**22  # of the model for one number of the file, and any number of them


@dataclass(frozen=True)
class Packed:
    """A packed checkpoint, read and checked.

    Attributes:
        path (str): Where it was read.
        config (dict): ``default_scope``, ``model`` and maybe ``test_pipeline``.
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
            if name in state:  # a weight of two layers
                state[alias] = state[name]
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
        out_dim = entry.get('out_dim', 0)
        if not entry['bits']:  # of a skipped block
            zeros = torch.zeros((), dtype=dtype).expand(shape)
            state[f'{name}.weight'] = zeros.transpose(0, out_dim)
            return
        codes = codes_of(self.tensors[f'{name}.weight'], entry)
        grid = f'{name}.w_quantizer'
        scale = state[f'{grid}.scale']
        zero = state.setdefault(f'{grid}.zero', torch.zeros_like(scale))
        q = codes.to(torch.int16) + entry['levels'][0]
        weight = from_integers(q, scale, zero, dtype)
        state[f'{name}.weight'] = outputs_first(weight, out_dim)
        state[f'{grid}.bounds'] = torch.tensor(entry['levels'], dtype=torch.int32)
        state[f'{grid}.signed'] = torch.tensor(1, dtype=torch.int8)

    def _policy(self) -> Policy:
        """With how its net is quantized: nobody has to run a stranger's forward."""
        quant = dict(self.config['model']['quant'])
        quant['float_layers'] = quant.pop('exclude', [])
        meta = dict(self.policy.meta, quant=quant) if {*quant} == QUANT else {}
        return Policy(self.policy.layers, meta)

    def whole_config(self) -> Config:
        """As far as the toolboxes want it to feed the net, or to build it anew."""
        model, pipeline = dict(self.config['model']), self.config.get('test_pipeline')
        if 'quant' in model:
            model['quant'] = dict(model['quant'], policy=self._policy().to_dict())
        whole = dict(default_scope=self.config['default_scope'], model=model)
        if pipeline is not None:
            whole['test_dataloader'] = dict(dataset=dict(pipeline=pipeline))
            # Where mmseg looks for it, without a scope.
            scope = dict(_scope_=self.config['default_scope'])
            whole['test_pipeline'] = [{**step, **scope} for step in pipeline]
        return Config(whole)

    def build(self) -> nn.Module:
        """The net itself, see :func:`mmmpq.load_packed`."""
        config = dict(self.config['model'])
        scope = self.config['default_scope']
        share, least = PARAMETERS
        most = share * stored_elements(self.index, self.tensors) + least
        with _explained(self.path, 'its config builds no model of the file here'):
            pipeline = self.config.get('test_pipeline') or []
            for part, key in ((config, 'model'), (pipeline, 'test_pipeline')):
                check_types(part, scope, self.path)
                check_texts(part, self.path, key)
            if 'quant' in config:
                config['quant'] = dict(config['quant'], policy=self._policy())
            with DefaultScope.overwrite_default_scope(scope), fewer_parameters(most):
                model = MODELS.build(ConfigDict(config))
        with _explained(
            self.path, 'its tensors do not fit the model that its config builds here'
        ):
            state = self.state_dict()
            prepare(model, state._metadata['']['packed'])
            with torch.no_grad():
                for name, tensor in model.state_dict(keep_vars=True).items():
                    if name in state:
                        tensor.data = tensor.data.to(state[name].dtype)
            found = load_state(model, state)
            # What a model drops from a state, it computes anew (Swin V2).
            missing = [n for n in found.missing_keys if n not in state]
            if names := missing + found.unexpected_keys:
                raise ValueError(f'{len(names)} are amiss, such as {names[0]}')
            # Where the inferencers of the toolboxes look for them.
            model.cfg = model._config = self.whole_config()
            model.dataset_meta = model._dataset_meta = self.dataset_meta
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
    version = metadata.get('version')
    if version not in map(str, range(1, VERSION + 1)):
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
    with _explained(path, 'its metadata is not what mmmpq writes'):
        config, policy, costs, dataset_meta = (
            _dict(key, from_json(metadata[key]))
            for key in ('config', 'policy', 'costs', 'dataset_meta')
        )
        _dict('config.model', config['model'])
        if not isinstance(config['default_scope'], str):
            raise ValueError(f'default_scope: found {config["default_scope"]!r:.60}')
        layers = _dict('policy.layers', policy['layers'])
        policy = Policy(
            {n: Precision.parse(p, f'policy: {n}') for n, p in layers.items()},
            {**_dict('policy.meta', policy['meta']), 'costs': costs},
        )
    with _explained(path, 'its index is not what mmmpq writes'):
        index = from_json(_inflated(compressed))
        check_index(index, tensors, policy)
    for name, tensor in tensors.items():
        if digest_of(tensor) != index['digests'].get(name):
            raise ValueError(f'{path}: the tensor {name!r} is not what was written')
    with _explained(path, 'its index is not what mmmpq writes'):
        for name, entry in index['weights'].items():
            if 'coding' in entry:
                codes_of(tensors[f'{name}.weight'], entry)
    return Packed(path, config, policy, dataset_meta, index, tensors)


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Whatever fails inside becomes one ValueError of one line that names the file.

    A file may be anybody's: any error at all may come of what it holds.
    """
    try:
        yield
    except Exception as error:
        text = ' '.join(str(error).split())
        if not isinstance(error, ValueError):
            text = f'{type(error).__name__}: {text}'
        if not text.startswith(path):
            text = f'{path}: {what}: {text[:400]}'
        raise ValueError(text) from error


def _dict(key: str, value: Any) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f'{key}: found {value!r:.60}; accepted is a dict')
    return value


def _inflated(compressed: Tensor) -> bytes:
    data = compressed.numpy().tobytes()
    stream = zlib.decompressobj()
    text = stream.decompress(data, GROWTH * len(data))
    if not stream.eof:
        raise ValueError(
            f'it is cut short, or opens to more than {GROWTH} times its size'
        )
    return text


def digest_of(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a tensor's bytes."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return sha256(data).hexdigest()[:16]


def digest_of_all(metadata: Mapping[str, str], index: Tensor) -> str:
    """SHA-256 of the metadata, as JSON with sorted keys, and the index behind it."""
    text = json.dumps(metadata, sort_keys=True, separators=(',', ':'))
    return sha256(text.encode() + index.numpy().tobytes()).hexdigest()
