"""The toolbox's model with quantized layers in place of its float ones."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from mmmpq.costs import Hardware, layer_type
from mmmpq.layers import (
    MixedLayer,
    QuantizedLayer,
    Skip,
    quantized_layers,
    watch_passes,
)
from mmmpq.models.loading import watch_loading
from mmmpq.models.selection import (
    default_fixed,
    expand,
    float_twin,
    group_layers,
    parse_fixed,
    stem_of,
)
from mmmpq.models.skipping import check_skips, skippable
from mmmpq.policy import SKIP, Policy, Precision, near, parse_candidates
from mmmpq.quantizers import BatchQuantizer
from mmmpq.registry import MODELS, RELAXATIONS, build

QUANT_KEYS = [
    'candidates',
    'policy',
    'quantizer',
    'w_quantizer',
    'a_quantizer',
    'groups',
    'fixed',
    'exclude',
    'mixing',
    'own_weights',
    'relaxation',
    'hardware',
]
SAFE = Precision(8, 8)


@MODELS.register_module()
def QuantModel(
    base_type: str | None = None, quant: dict[str, Any] | None = None, **base: Any
) -> nn.Module:
    """Builds the toolbox's model and quantizes its layers in place.

    What comes back is an object of the toolbox's own class. Every other key of the
    base config stays where it was, so that ``config.model.backbone`` is found by the
    toolbox's tools.

    Args:
        base_type: ``type`` of the toolbox's model, such as 'RetinaNet'.
        quant: See :func:`quantize`.
        **base: The toolbox model's own config.

    Examples:
        >>> model = dict(
        ...     type='mmmpq.QuantModel',
        ...     base_type='RetinaNet',
        ...     quant=dict(candidates=[(2, 2), (4, 4), (8, 8)]))
    """
    for key, value, example in (
        ('base_type', base_type, "a model of the toolbox, such as 'RetinaNet'"),
        ('quant', quant, "a dict such as dict(candidates=['W2A2', 'W4A4', 'W8A8'])"),
    ):
        if value is None:
            raise ValueError(f'model.{key}: found none; accepted is {example}')
    if isinstance(base_type, str):
        with MMENGINE_MODELS.switch_scope_and_registry(None) as registry:
            if registry.get(base_type) is None:
                raise KeyError(
                    f'model.base_type: found {base_type!r}, which is no model in the '
                    f'default scope; {near(base_type, _known_models())}'
                )
    model = MMENGINE_MODELS.build(dict(base, type=base_type))
    return quantize(model, **dict(quant))


def quantize(
    model: nn.Module,
    candidates: Any = None,
    policy: Any = None,
    quantizer: dict | None = None,
    w_quantizer: dict | None = None,
    a_quantizer: dict | None = None,
    groups: Any = 'residual_block',
    fixed: dict[str, Any] | None = None,
    exclude: Iterable[str] = (),
    mixing: str = 'composite',
    own_weights: bool = False,
    relaxation: dict | None = None,
    hardware: str | None = None,
    **unknown: Any,
) -> nn.Module:
    """Quantizes the layers of ``model`` in place and returns it.

    Exactly one of ``candidates`` (for a search) and ``policy`` (fixed precisions) is
    given. Layers that cannot be quantized stay float and are listed once.

    Args:
        model: Any model of ``nn.Conv2d`` and ``nn.Linear``.
        candidates: Precisions that every searchable layer may take. (0, 0) skips a
            residual block: it is left out, and this is said once, where a group is no
            block whose shortcut is the identity.
        policy: A ``policy.json``, a :class:`Policy`, or a uniform precision such as
            'W4A4' for the layers that would be searched.
        quantizer: Config of both quantizers; default ``dict(type='LinearQuantizer')``.
        w_quantizer: Config of the quantizer of weights alone.
        a_quantizer: Config of the quantizer of activations alone.
        groups: 'residual_block', 'layer', or a list of patterns or of lists of them.
        fixed: Pattern -> precision, on top of the default: the stem and the final
            prediction layers at 8/8. None as a precision makes a layer searchable.
        exclude: Patterns of layers that stay float.
        mixing: 'composite' (the default), 'outputs' or 'sampled', see
            :class:`mmmpq.layers.MixedLayer`.
        own_weights: With mixing 'outputs' or 'sampled', a weight for each candidate.
        relaxation: Config; default ``dict(type='Softmax')``.
        hardware: File of a hardware profile; candidates it lacks are left out.

    Raises:
        KeyError: A key of ``quant`` that does not exist.
        ValueError: A pattern that matches nothing, bits out of range, empty or
            duplicate candidates, a policy for another model, a block to be skipped
            that cannot be.
        FileNotFoundError: The policy or hardware file is missing.
    """
    if unknown:
        name = next(iter(unknown))
        raise KeyError(f'quant: unknown key {name!r}; {near(name, QUANT_KEYS)}')
    if (candidates is None) == (policy is None):
        raise ValueError(
            'quant: accepted is exactly one of `candidates` (to search) and `policy` '
            f'(fixed precisions); found {"none" if policy is None else "both"}'
        )
    quantizers = dict(
        quantizer=quantizer, w_quantizer=w_quantizer, a_quantizer=a_quantizer
    )
    modules = dict(model.named_modules())
    names = [n for n, m in modules.items() if float_twin(m)]
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    excluded = set(expand(exclude, names, 'quant.exclude'))
    _report_float(modules, names)
    safe = [n for n in default_fixed(model, names) if n not in excluded]
    names = [n for n in names if n not in excluded]
    pinned: dict[str, Precision | None] = dict.fromkeys(safe, SAFE)
    pinned.update(parse_fixed(fixed or {}, names))
    pinned = {n: p for n, p in pinned.items() if p is not None}
    searchable = [n for n in names if n not in pinned]

    if policy is not None:
        precisions = _precisions(policy, names, searchable, pinned)
        _fix(modules, precisions, quantizers, 'quant.policy')
        _keep_input_range(modules[stem_of(model)])
        watch_passes(model)
        watch_loading(model)
        return model

    candidates = parse_candidates(candidates, 'quant.candidates')
    if set(candidates) == {SKIP}:
        raise ValueError(
            'quant.candidates: found (0, 0) alone, which skips a block; at least one '
            'other precision is needed'
        )
    profile = Hardware.load(hardware) if hardware else None
    grouped = group_layers(model, searchable, groups)
    skips = skippable(modules, grouped) if SKIP in candidates else {}
    _fix(modules, pinned, quantizers, 'quant.fixed')
    for group, members in grouped.items():
        allowed = [c for c in candidates if c != SKIP or group in skips]
        allowed = _allowed(allowed, [modules[n] for n in members], profile, group)
        cfg = relaxation or dict(type='Softmax')
        shared = build(RELAXATIONS, cfg, candidates=allowed, group=group)
        for name in members:
            float_twin(modules[name])[0].from_float(
                modules[name],
                candidates=allowed,
                relaxation=shared,
                mixing=mixing,
                own_weights=own_weights,
                **quantizers,
            )
        if group in skips:
            Skip(modules[skips[group]], modules[members[0]])
    if not searchable:
        raise ValueError(
            'quant: no layer is left to search: '
            f'{len(excluded)} are excluded, {len(pinned)} fixed'
        )
    _keep_input_range(modules[stem_of(model)])
    watch_passes(model)
    watch_loading(model)
    return model


def _keep_input_range(stem: nn.Module) -> None:
    """The range of the image stays as it was calibrated.

    To train it would take the gradient with respect to the image, which no float model
    computes: nearly a tenth of the step of a ResNet-18.
    """
    if isinstance(stem, QuantizedLayer):
        stem.a_quantizer.requires_grad_(False)


def apply_policy(model: nn.Module, policy: Policy) -> nn.Module:
    """Makes a searched model the fixed-precision one of ``policy``, in place.

    Statistics of :class:`mmmpq.quantizers.BatchQuantizer` are kept if ``policy`` is the
    path in use, and forgotten otherwise.
    """
    layers = quantized_layers(model)
    policy.check_layers(layers)
    modules = dict(model.named_modules())
    check_skips(modules, policy.layers, 'policy')
    mixed = {n: m for n, m in layers.items() if isinstance(m, MixedLayer)}
    if any(_path(layer) != policy.layers[name] for name, layer in mixed.items()):
        forget_statistics(model)
    for name, layer in mixed.items():
        layer.fix(policy.layers[name])
    for module in modules.values():
        if isinstance(module.__dict__.get('forward'), Skip):
            module.forward.fix()
    return model


def forget_statistics(model: nn.Module) -> None:
    """Drops what was calibrated for another net than the one in use."""
    for module in model.modules():
        if isinstance(module, BatchQuantizer):
            module.forget()


def _path(layer: MixedLayer) -> Precision | None:
    """The one precision that a layer computes at, if there is one."""
    choice = layer.relaxation.choice if layer.mixing == 'sampled' else None
    return None if choice is None else layer.candidates[choice]


def _fix(
    modules: dict[str, nn.Module],
    precisions: dict[str, Precision],
    quantizers: dict[str, Any],
    key: str,
) -> None:
    """Makes layers those of one precision, and blocks at (0, 0) skipped ones."""
    skipped = check_skips(modules, precisions, key)
    for name, precision in precisions.items():
        float_twin(modules[name])[1].from_float(
            modules[name],
            w_bits=precision.w_bits,
            a_bits=precision.a_bits,
            **quantizers,
        )
    for block, layer in skipped.items():
        Skip(modules[block], modules[layer])


def _precisions(
    policy: Any,
    names: list[str],
    searchable: list[str],
    pinned: dict[str, Precision],
) -> dict[str, Precision]:
    if not isinstance(policy, Policy):
        try:
            uniform = Precision.parse(policy, 'quant.policy')
        except ValueError:
            if not isinstance(policy, (str, PathLike)) or _looks_uniform(policy):
                raise
            policy = Policy.load(policy)
        else:
            return {n: pinned.get(n, uniform) for n in names}
    policy.check_layers(names)
    return {n: policy.layers[n] for n in names}


def _looks_uniform(policy: str | PathLike) -> bool:
    text = str(policy)
    return len(text) <= 8 and text[:1] in 'Ww' and not text.endswith('.json')


def _allowed(candidates, members, profile, group):
    if profile is None:
        return candidates
    kinds = {layer_type(m) for m in members}
    allowed = [c for c in candidates if all(profile.allows(k, c) for k in kinds)]
    if not set(allowed) - {SKIP}:
        raise ValueError(
            f'quant.hardware: {profile.name} allows none of the candidates '
            f'{", ".join(map(str, candidates))} for {"/".join(sorted(kinds))} ({group})'
        )
    return allowed


def _report_float(modules: dict[str, nn.Module], quantizable: list[str]) -> None:
    """Says once which layers with a weight of their own stay float."""
    others = [
        f'{n} ({type(m).__name__})'
        for n, m in modules.items()
        if n not in set(quantizable)
        and getattr(m, 'weight', None) is not None
        and m.weight.dim() > 1
        and not isinstance(m, nn.Embedding)
    ]
    if others:
        print_log(f'these layers stay float: {", ".join(others)}', logger='current')


def _known_models() -> list[str]:
    registry = MMENGINE_MODELS
    names = list(registry.module_dict)
    for child in registry.children.values():
        names += list(child.module_dict)
    return names
