"""The part of a model that was quantized as a whole."""

from torch import nn

from mmmpq.layers.base import quantized_layers


def quantized_part(model: nn.Module) -> nn.Module:
    """What of a model policies are of: itself, or the part that was quantized, such as
    the detector in a wrapper. Of a student and a teacher it is the student.

    Raises:
        ValueError: Two parts that are searched, and are no copies of each other.
    """
    parts = quantized_parts(model)
    searched = [p for p in parts if any(hasattr(m, 'candidates') for m in p.modules())]
    copies = searched or parts
    copies.sort(key=lambda part: not any(p.requires_grad for p in part.parameters()))
    forms = {tuple(quantized_layers(part)) for part in copies}
    if len(forms) > 1:
        raise ValueError(
            f'model: found {len(copies)} different parts with a `quant` of their own; '
            'accepted is one, and copies of it'
        )
    return copies[0]


def quantized_parts(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that were quantized as a whole; else the model itself."""
    parts: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        outer = (name[:i] for i, letter in enumerate(name) if letter == '.')
        if hasattr(module, 'quantized_with') and not any(n in parts for n in outer):
            parts[name] = module
    return list(parts.values()) or [model]
