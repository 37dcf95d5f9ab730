"""Whether a checkpoint is one of a model, and what a packed one does to it."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmpq.layers import quantized_layers, quantized_part
from mmmpq.policy import Policy, Precision, some_of
from mmmpq.quantizers import NO_RANGE

AS_FLOAT = "model.quant.policy=W32A32 'model.quant.fixed.*=None'"


class Folded(nn.Identity):
    """In the place of a BatchNorm that is part of the layer before it.

    Args:
        layer: Name of that layer in the model.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer


def without_batchnorm(model: nn.Module, folded: Mapping[str, str]) -> nn.Module:
    """Puts :class:`Folded` in the place of BatchNorms, and a bias into the layers.

    Biases that are new are not trained.

    Args:
        model: Changed in place.
        folded: Names of BatchNorms, and of the layers that they are part of.

    Raises:
        ValueError: The model has no such modules.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, layer in folded.items():
        norm = isinstance(modules.get(name), (_BatchNorm, Folded))
        weight = getattr(modules.get(layer), 'weight', None)
        if not norm or not isinstance(weight, Tensor):
            raise ValueError(
                f'the checkpoint is of another model: it has folded '
                f'{name} into {layer}, which {type(model).__name__} does not have'
            )
    for name, layer in folded.items():
        parent, _, child = name.rpartition('.')
        if not isinstance(modules[name], Folded):
            setattr(modules[parent], child, Folded(layer))
        weight, bias = modules[layer].weight, modules[layer].bias
        if bias is None:
            # An optimizer that is there already would not know it.
            channels = weight.shape[getattr(modules[layer], 'out_dim', 0)]
            bias = nn.Parameter(weight.new_zeros(channels), requires_grad=False)
            modules[layer].bias = bias
    if hasattr(model, 'islands'):
        model.islands.attach(model)
    return model


def check_policy(model: nn.Module, policy: Policy) -> None:
    """Raises ValueError if the model's layers have not the policy's precisions."""
    layers = quantized_layers(model)
    precisions = {n: getattr(layer, 'precision', None) for n, layer in layers.items()}
    if None in precisions.values():
        raise ValueError(
            'load_from: a packed checkpoint is the end of a search, and has one '
            'precision per layer; a search starts from a float checkpoint'
        )
    policy.check_layers(precisions)
    others = [
        f'{n} ({policy.layers[n]} in the checkpoint, {p} in the model)'
        for n, p in precisions.items()
        if policy.layers[n] != p
    ]
    if others:
        raise ValueError(
            'policy: the checkpoint is of another policy than the model: '
            f'{some_of(others)}'
        )


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> Any:
    """``model.load_state_dict(state, strict=False)``, in whatever mode it is.

    What modules compute of their weights when they begin to evaluate (the biases of
    TinyViT's attention) is computed anew.
    """
    result = model.load_state_dict(state, strict=False)
    if not model.training:
        model.train()
        model.eval()
    return result


def load_whole(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    path: str,
    key: str = 'checkpoint',
    calibrated: bool = True,
) -> None:
    """Loads all of a model's state: of its very policy, with a range for every input.

    What a model drops from a checkpoint when it loads one (some compute a buffer anew)
    is not missed.

    Args:
        model: A toolbox model, unwrapped.
        checkpoint: As MMEngine gives it.
        path: Where it was read.
        key: What named it, for the messages of errors.
        calibrated: False: ranges may be fitted later, as those of a supernet are.

    Raises:
        ValueError: It is of another model or policy, or a float one, or of a quantized
            net for a float one; names what differs.
    """
    where = f'{key}: {path}'
    layers = quantized_layers(model)
    _check_recorded(quantized_layers(quantized_part(model)), checkpoint, where)
    state = _state(checkpoint)
    names = set(state)
    try:
        result = load_state(model, state)
    except RuntimeError as error:
        raise ValueError(
            f'{where} is of another model: {str(error).splitlines()[-1].strip()}'
        ) from error
    unused = 'num_batches_tracked', *_unused_quantizers(layers)
    missing = [n for n in result.missing_keys if n not in names]
    missing = [n for n in missing if not n.endswith(unused)]
    if missing:
        kind, hint = 'another', ''
        if all(n.startswith('islands.') for n in missing):
            kind = 'a net that was trained without quant.target'
        elif any('quantizer' in n for n in missing):
            kind, hint = 'a float net', f'; for a float file: --cfg-options {AS_FLOAT}'
        raise ValueError(
            f'{where} has nothing for {len(missing)} tensors, such as '
            f'{", ".join(missing[:3])}; it is of {kind} and not of this model, '
            f'fine-tuned{hint}'
        )
    more = [n for n in result.unexpected_keys if '_quantizer.' in n]
    if more and more[0].startswith('islands.'):
        raise ValueError(
            f'{where} was trained with quant.target, for a file that quantizes between '
            f'layers: it has {more[0]}; accepted is a config with that target'
        )
    if more:
        raise ValueError(
            f'{where} is of another policy than the config: it has {more[0]}, of a '
            'layer that is not quantized here'
        )
    unfit = [
        f'{name}.{kind}_quantizer'
        for name, layer in layers.items()
        for kind, bits in zip('wa', getattr(layer, 'precision', ()), strict=False)
        if bits not in (0, 32)
        for quantizer in [getattr(layer, f'{kind}_quantizer')]
        if not quantizer.calibrated and not quantizer.per_subnet
    ]
    if unfit and calibrated:
        raise ValueError(
            f'{where} is not calibrated: {", ".join(unfit[:3])}: {NO_RANGE}'
        )


def load_float(model: nn.Module, checkpoint: Mapping[str, Any], path: str) -> None:
    """Loads the float net that a supernet starts from: the weights of every layer.

    Args:
        model: A supernet, unwrapped.
        checkpoint, path: As of :func:`load_whole`.

    Raises:
        ValueError: It has not all of them.
    """
    weights, layers = _state(checkpoint), quantized_layers(model)
    lacking = set(load_state(model, weights).missing_keys)
    missing = [n for n in layers if f'{n}.weight' in lacking]
    if missing:
        raise ValueError(
            f'load_from: {path} has no weights for {len(missing)} of {len(layers)} '
            f'layers, such as {", ".join(missing[:3])}; is it of another model?'
        )


def is_of_quantizing(name: str) -> bool:
    """Whether a tensor of this name is one that no float net has."""
    return '_quantizer.' in name or '.relaxation.' in name


def check_some(model: nn.Module, checkpoint: Mapping[str, Any], path: str) -> None:
    """Raises ValueError if nothing of a checkpoint to start from fits the model."""
    model_shapes = {n: [*t.shape] for n, t in model.state_dict().items()}
    file_shapes = {  # some of those of quantizing are put in
        name: [*getattr(tensor, 'shape', '?')]
        for name, tensor in _state(checkpoint).items()
        if not is_of_quantizing(name)
    }
    if not any(model_shapes.get(name) == shape for name, shape in file_shapes.items()):
        name, need = min(file_shapes, default=''), min(model_shapes, default='')
        need = name if name in model_shapes else need
        raise ValueError(
            f'load_from: {path} has nothing of this model: found {name!r} of '
            f'{file_shapes.get(name)}, and no {need!r} of {model_shapes.get(need)}'
        )


def _state(checkpoint: Mapping[str, Any]) -> OrderedDict[str, Tensor]:
    """The state dict of a checkpoint, of an unwrapped model, with its metadata."""
    tensors = checkpoint.get('state_dict', checkpoint)
    state = OrderedDict((k.removeprefix('module.'), v) for k, v in tensors.items())
    if hasattr(tensors, '_metadata'):
        state._metadata = tensors._metadata
    return state


def _check_recorded(
    layers: Mapping[str, nn.Module], checkpoint: Mapping[str, Any], where: str
) -> None:
    """Raises ValueError if the checkpoint names another policy than the net's."""
    recorded = (checkpoint.get('meta') or {}).get('policy')
    if not recorded:  # of no search and no fine-tuning
        return
    for name in [*layers, *recorded]:
        precision = getattr(layers.get(name), 'precision', None)
        here = 'float' if name not in layers else 'to be searched'
        here = here if precision is None else [*precision]
        if recorded.get(name) != here:
            raise ValueError(
                f'{where} is of another policy than the config: {name} is at '
                f'{recorded.get(name)}, here {here}'
            )


def _unused_quantizers(layers: Mapping[str, nn.Module]) -> list[str]:
    """Names of what the quantizers of 32-bit weights and inputs hold: nothing."""
    return [
        f'{name}.{kind}_quantizer.{key}'
        for name, layer in layers.items()
        for kind, bits in zip('wa', getattr(layer, 'precision', ()), strict=False)
        if bits == 32
        for key in getattr(layer, f'{kind}_quantizer').state_dict()
    ]


def prepare(model: nn.Module, packed: Mapping[str, Any]) -> None:
    """Checks that ``model`` is the one of a packed checkpoint, and brings it in shape.

    Args:
        model: Nothing in it is changed if an error is raised.
        packed: ``layers`` and ``meta`` of the policy, and ``folded``.

    Raises:
        ValueError: Another model, or another policy.
    """
    layers = {n: Precision(*p) for n, p in packed['layers'].items()}
    if quantized_layers(model):
        check_policy(model, Policy(layers, dict(packed['meta'])))
    without_batchnorm(model, packed['folded'])


def watch_loading(model: nn.Module) -> None:
    """Lets ``model`` be prepared whenever it loads a packed checkpoint."""
    model._register_load_state_dict_pre_hook(_prepare, with_module=True)


@torch.no_grad()
def _prepare(model: nn.Module, state: dict, prefix: str, metadata: dict, *_) -> None:
    # Who takes ``module.`` off the names of tensors leaves it in those of modules.
    every = getattr(state, '_metadata', None) or {}
    for name in [n for n in every if n.startswith('module.')]:
        every.setdefault(name.removeprefix('module.'), every[name])
    if 'packed' in metadata:
        prepare(model, metadata['packed'])
