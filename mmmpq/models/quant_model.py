"""The toolbox's model with quantized layers in place of its float ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from mmmpq.arguments import checks_arguments
from mmmpq.costs import Hardware, layer_type
from mmmpq.layers import (
    LINEAR,
    QuantizedLayer,
    Skip,
    call_by_weight,
    float_twin,
    open_attention,
    watch_passes,
)
from mmmpq.models.islands import add_islands
from mmmpq.models.kept import keep_layers
from mmmpq.models.loading import watch_loading
from mmmpq.models.plan import CANDIDATES, SAFE, Plan, plan
from mmmpq.models.policies import (
    fix_layers,
    quantizers_of,
    read_policy,
    recorded,
    still_there,
)
from mmmpq.models.selection import block_of, group_candidates, stem_of
from mmmpq.models.skipping import skippable
from mmmpq.policy import SKIP, Policy, Precision, near
from mmmpq.registry import MODELS, RELAXATIONS, build
from mmmpq.user_config import type_name

ENDS = ('searched', 'fixed')


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
        quant: See :func:`quantize`; ``{}`` for a search with its defaults.
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
                    f'default scope {registry.scope!r}; '
                    f'{near(base_type, _known_models())}'
                )
    model = MMENGINE_MODELS.build(dict(base, type=base_type))
    return quantize(model, **dict(quant))


@checks_arguments('quant')
def quantize(
    model: nn.Module,
    candidates: Any = None,
    policy: Any = None,
    quantizer: dict | None = None,
    w_quantizer: dict | None = None,
    a_quantizer: dict | None = None,
    groups: Any = 'residual_block',
    fixed: dict[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    mixing: str = 'composite',
    own_weights: bool = False,
    relaxation: dict | None = None,
    hardware: str | Path | None = None,
    ends: str | None = None,
    target: str | Mapping | None = None,
) -> nn.Module:
    """Quantizes the layers of ``model`` in place and returns it.

    ``candidates`` are for a search, ``policy`` is for fixed precisions and wins where
    both are given, so that a config may inherit from that of its search. Layers that
    cannot be quantized stay float and are listed once.

    Args:
        model: Any model of plain convolutions, ``nn.Linear`` and
            ``nn.MultiheadAttention``, whose projections become layers.
        candidates: Precisions that every searchable layer may take (default: eleven,
            :data:`mmmpq.models.plan.CANDIDATES`), or
            ``{pattern: precisions}``: later patterns win, and a layer that one names
            (other than '*') is searched, if it is stem or prediction layer as well.
            (0, 0) skips a residual block: it is left out, and this is said once, where
            a group is no block whose shortcut is the identity.
        policy: A ``policy.json``, its content as a dict, a :class:`Policy`, or a
            uniform precision such as 'W4A4' for the layers that would be searched. A
            policy says which layers are quantized and with which quantizers:
            ``exclude`` and ``fixed`` are then not read, and quantizers that differ from
            those of the policy are used, but reported.
        quantizer: Config of both quantizers; default ``dict(type='LinearQuantizer')``.
        w_quantizer: Config of the quantizer of weights alone.
        a_quantizer: Config of the quantizer of activations alone.
        groups: 'residual_block', 'layer', or a list of patterns or of lists of them.
        fixed: Pattern -> precision of layers that are not searched. None as a precision
            makes one of the ``ends`` a layer like any other.
        exclude: Patterns of layers that stay float.
        mixing: 'composite' (the default), 'outputs' or 'sampled', see
            :class:`mmmpq.layers.MixedLayer`, or one that is registered.
        own_weights: With mixing 'outputs' or 'sampled', a weight for each candidate.
        relaxation: Config; default ``dict(type='Softmax')``.
        hardware: File of a hardware profile, or a name of
                :data:`mmmpq.costs.hardware.PROFILES`; candidates it lacks are left out.
        ends: The stem and the final prediction layers, which few bits harm most and
            which cost most: 'searched' among 4, 6 and 8 bits (the stem's input: 8), or
            'fixed' at 8/8. Default: searched, but with UniformSampling, whose subnets
            have one precision everywhere. In a uniform net, and so in a relative
            budget such as 'W4A4', they have 8/8.
        target: A runtime, such as 'onnxruntime': with a policy, tensors between layers
            are quantized as in an ONNX file for it, see :func:`.islands.add_islands`.

    Raises:
        KeyError: A key of ``quant`` that does not exist.
        ValueError: A pattern that matches nothing, bits out of range, empty or
            duplicate candidates, a policy for another model, a block to be skipped
            that cannot be.
        FileNotFoundError: The policy or hardware file is missing.
    """
    if candidates is None and policy is None:
        candidates = CANDIDATES
    # Packed files have what `quantizer` was under both keys.
    alone = a_quantizer is not None and a_quantizer != w_quantizer
    if alone and a_quantizer.get('per_channel'):
        raise ValueError(
            'quant.a_quantizer.per_channel: found True; accepted is False, as channels '
            'of an input are summed over'
        )
    given = w_quantizer or quantizer, a_quantizer or quantizer
    policy = None if policy is None else read_policy(policy)
    carried = policy.meta.get('quant') if isinstance(policy, Policy) else None
    open_attention(model)
    call_by_weight(model)
    if carried:
        given = quantizers_of(carried, given)
        exclude, fixed = still_there(carried['float_layers'], model), {}
    quantizers = dict(w_quantizer=given[0] or LINEAR, a_quantizer=given[1] or LINEAR)
    # A policy of layers says itself which are searched.
    wanted = None if isinstance(policy, Policy) else candidates
    if ends is None:
        sampled = type_name(relaxation or {}) == 'UniformSampling'
        ends = 'fixed' if sampled else 'searched'
    if ends not in ENDS:
        raise ValueError(f'quant.ends: found {ends!r}; accepted are {", ".join(ENDS)}')
    searched = ends if policy is None else None
    layers = plan(model, exclude, fixed or {}, wanted, searched, look=not carried)
    if policy is not None:
        fix_layers(
            layers.modules,
            _precisions(policy, layers),
            quantizers,
            'quant.policy',
        )
    else:
        search = dict(mixing=mixing, own_weights=own_weights, relaxation=relaxation)
        _make_search(model, layers, groups, hardware, search, quantizers)
    for name, first in layers.tied.items():
        layers.modules[name].w_quantizer = layers.modules[first].w_quantizer
    for name in layers.copied:  # what they copy is trained
        layers.modules[name].w_quantizer.requires_grad_(False)
        layers.modules[name].a_quantizer.requires_grad_(False)
    _keep_input_range(layers.modules[stem_of(model)])
    model.quantized_with = dict(
        {key: recorded(config) for key, config in quantizers.items()},
        float_layers=layers.excluded,
    )
    if target is not None:
        add_islands(model, target)
    keep_layers(model)
    watch_passes(model)
    watch_loading(model)
    return model


def _make_search(
    model: nn.Module,
    layers: Plan,
    groups: Any,
    hardware: str | None,
    search: dict[str, Any],
    quantizers: dict[str, Any],
) -> None:
    """Gives the searchable layers their candidates, group by group."""
    modules = layers.modules
    if search['own_weights'] and layers.tied:
        raise ValueError(
            'quant.own_weights: accepted is False for layers that have one weight, as '
            f'{" and ".join(next(iter(layers.tied.items())))} do'
        )
    every = set(layers.candidates.values())
    if (SKIP,) in every:
        raise ValueError(
            'quant.candidates: found (0, 0) alone, which skips a block; at least one '
            'other precision is needed'
        )
    profile = None if hardware is None else Hardware.load(hardware)
    grouped = layers.grouped(model, groups)
    candidates = group_candidates(layers.candidates, grouped)
    can_skip = [g for g, precisions in candidates.items() if SKIP in precisions]
    skips = skippable(modules, {g: grouped[g] for g in can_skip}) if can_skip else {}
    fix_layers(modules, layers.pinned, quantizers, 'quant.fixed')
    relaxation = search['relaxation'] or dict(type='Softmax')
    for group, members in grouped.items():
        allowed = [c for c in candidates[group] if c != SKIP or group in skips]
        allowed = _allowed(allowed, [modules[n] for n in members], profile, group)
        for part in layers.followed_by(members):
            shared = build(
                *(RELAXATIONS, relaxation, 'quant.relaxation'),
                candidates=allowed,
                group=group,
            )
            for name in part:
                float_twin(modules[name])[0].from_float(
                    modules[name],
                    candidates=allowed,
                    **(search | quantizers | dict(relaxation=shared)),
                )
                if name in layers.ends:
                    modules[name].in_uniform = SAFE
            if group in skips:
                Skip(modules[block_of(part[0], modules)], modules[part[0]])
    if not layers.searchable:
        raise ValueError(
            'quant: no layer is left to search: '
            f'{len(layers.excluded)} are excluded, {len(layers.pinned)} fixed'
        )


def _keep_input_range(stem: nn.Module) -> None:
    """The range of the image stays as it was calibrated.

    To train it would take the gradient with respect to the image, which no float model
    computes: nearly a tenth of the step of a ResNet-18.
    """
    if isinstance(stem, QuantizedLayer):
        stem.a_quantizer.requires_grad_(False)


def _precisions(policy: Policy | Precision, layers: Plan) -> dict[str, Precision]:
    if isinstance(policy, Precision):
        return {n: layers.pinned.get(n, policy) for n in layers.names}
    policy.check_layers(layers.names)
    for name, first in layers.tied.items():
        bits = [policy.layers[n].w_bits for n in (first, name)]
        if bits[0] != bits[1]:
            raise ValueError(
                f'quant.policy: found {bits[0]} and {bits[1]} bits for the weights of '
                f'{first} and {name}, which are one and the same'
            )
    return {n: policy.layers[n] for n in layers.names}


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


def _known_models() -> list[str]:
    registry = MMENGINE_MODELS
    names = list(registry.module_dict)
    for child in registry.children.values():
        names += list(child.module_dict)
    return names
