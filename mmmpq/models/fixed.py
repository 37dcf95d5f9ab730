"""A net of fixed precision and its weights, checked against each other."""

from typing import Any

from mmengine.config import Config
from torch import nn

from mmmpq.layers import quantized_layers
from mmmpq.models.build import build_model

AS_FLOAT = "model.quant.policy=W32A32 'model.quant.fixed.*=None'"


def fixed_model(cfg: Config) -> nn.Module:
    """The config's model, whose precisions must be fixed.

    Raises:
        ValueError: It is not quantized, or a supernet.
    """
    net = build_model(cfg).eval()
    layers = quantized_layers(net)
    if not layers or not all(hasattr(layer, 'precision') for layer in layers.values()):
        found = 'candidates of a search' if layers else 'no quantized layer'
        raise ValueError(
            f'CONFIG: found {found}; accepted is the config of a fine-tuning, with '
            "quant=dict(policy='policy.json')"
        )
    return net


def load_strict(model: nn.Module, checkpoint: dict[str, Any], path: str) -> None:
    """Loads all of a model's state.

    Raises:
        ValueError: It is of another model or policy, or a float one; names what lacks.
    """
    layers = quantized_layers(model)
    found = (checkpoint.get('meta') or {}).get('policy')  # of a search or fine-tuning
    others = [
        n for n, layer in layers.items() if found and found.get(n) != [*layer.precision]
    ]
    if others:
        raise ValueError(
            f'checkpoint: {path} is of another policy than the config: '
            f'{others[0]} is at {found.get(others[0])}, here '
            f'{[*layers[others[0]].precision]}'
        )
    state = checkpoint['state_dict']
    kept = getattr(state, '_metadata', None)
    state = type(state)((k.removeprefix('module.'), v) for k, v in state.items())
    if kept is not None:
        state._metadata = kept
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(
            f'checkpoint: {path} is of another model: '
            f'{str(error).splitlines()[-1].strip()}'
        ) from error
    unused = 'num_batches_tracked', *_unused_quantizers(layers)
    missing = [n for n in missing if not n.endswith(unused)]
    if missing:
        kind, hint = 'another', ''
        if any('quantizer' in n for n in missing):
            kind, hint = 'a float net', f'; for a float file: --cfg-options {AS_FLOAT}'
        raise ValueError(
            f'checkpoint: {path} has nothing for {len(missing)} tensors, such as '
            f'{", ".join(missing[:3])}; it is of {kind} and not of this model, '
            f'fine-tuned{hint}'
        )


def _unused_quantizers(layers: dict[str, nn.Module]) -> list[str]:
    """Names of what the quantizers of 32-bit weights and inputs hold: nothing."""
    return [
        f'{name}.{kind}_quantizer.{key}'
        for name, layer in layers.items()
        for kind, bits in zip('wa', layer.precision, strict=True)
        if bits == 32
        for key in getattr(layer, f'{kind}_quantizer').state_dict()
    ]
