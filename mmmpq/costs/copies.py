"""Parts of a model that are averages of others: teachers, momentum encoders."""

from collections.abc import Iterator, Mapping

from mmengine.model import BaseAveragedModel
from torch import nn

from mmmpq.costs.layer_types import layer_type


def copies(model: nn.Module) -> dict[str, str]:
    """Names of the modules in copies of a part, and of those that they copy.

    A copy is not trained, has the class and the parameters of another part that is, and
    stands beside it in their parent (not in a list, as equal blocks do) or inside of
    one of MMEngine's averaged models.
    """
    modules = dict(model.named_modules())
    found: dict[str, str] = {}
    if all(p.requires_grad for p in model.parameters()):
        return found
    for name, part in modules.items():
        if name in found or _is_trained(part) or not _has_layers(part):
            continue
        for other in _places(name, modules):
            if _is_trained(modules[other]) and _form(modules[other]) == _form(part):
                for child, _ in part.named_modules():
                    found[f'{name}.{child}'.strip('.')] = f'{other}.{child}'.strip('.')
                break
    return found


def _places(name: str, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Where that could be which a part copies."""
    parent = name.rpartition('.')[0]
    ends = [i for i, letter in enumerate(name) if letter == '.']
    if any(isinstance(modules[name[:i]], BaseAveragedModel) for i in ends):
        yield from modules
    elif name and not isinstance(modules[parent], (nn.ModuleList, nn.Sequential)):
        yield from (n for n in modules if n and n.rpartition('.')[0] == parent)


def _is_trained(part: nn.Module) -> bool:
    return any(p.requires_grad for p in part.parameters())


def _has_layers(part: nn.Module) -> bool:
    """Whether it is more than a layer."""
    return not layer_type(part) and any(layer_type(m) for m in part.modules())


def _form(part: nn.Module) -> tuple:
    return type(part), [(n, p.shape) for n, p in part.named_parameters()]
