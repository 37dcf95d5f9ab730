"""Layer by layer, where a quantized net leaves the float one, and what harms most."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.baselines.sensitivity import output_distance
from mmmpq.layers import (
    Mode,
    QuantLayer,
    computing,
    first_input,
    float_mode,
    quantized_layers,
)
from mmmpq.models.task_loss import output_tensors, raw_outputs
from mmmpq.policy import SKIP
from mmmpq.post_training.norms import moments, norms_of
from mmmpq.post_training.rows import hooked, outputs_of

CLIPPED = 0.05  # share of the inputs' energy
STRETCHED = 8.0  # range over the 99.9th percentile of the inputs
SHIFT, SCALE = 0.5, 2.0  # of BatchNorms: deviations of means, ratio of variances
TINY = 1e-20


@dataclass
class Finding:
    """What is known of one layer or BatchNorm.

    Attributes:
        name: In the model.
        kind: 'layer' or 'BatchNorm'.
        precision: Of a layer.
        harm: Distance of the net's outputs from the float net's where this one is as it
            is and all others are float; of a stale BatchNorm, that which statistics of
            these images in place of its own make. As of
            :func:`mmmpq.baselines.sensitivity.output_distance`.
        alone, cumulated: Signal-to-noise ratio of its outputs in dB: on the float net's
            inputs, and in the quantized net.
        weights, inputs: The same alone, of quantized weights and of quantized inputs.
        facts: Numbers that a fault shows in.
        faults: What is wrong, with what to do.
    """

    name: str
    kind: str = 'layer'
    precision: str = ''
    harm: float = 0.0
    alone: float | None = None
    cumulated: float | None = None
    weights: float | None = None
    inputs: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def diagnose(
    model: nn.Module,
    batch: Any,
    step: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """What harms a quantized net, the worst first.

    The float net is that of its own weights: for each layer, the net with this one
    alone quantized; for each BatchNorm that is far from these images, the float net
    with their statistics in its place. Layers that no forward reaches come last.

    Args:
        model: Of fixed precision, calibrated.
        batch: As of :func:`mmmpq.models.task_loss.raw_outputs`; some ten images.
        step: Called with ``(done, total)``.

    Raises:
        ValueError: Nothing of it is quantized.
    """
    every = quantized_layers(model)
    layers = {
        n: m
        for n, m in every.items()
        if isinstance(m, QuantLayer) and m.precision not in (SKIP, (32, 32))
    }
    if not layers:
        raise ValueError('model: found no quantized layer; accepted is a quantized net')
    model.eval()
    with float_mode(model):
        clean = outputs_of(model, layers, [batch])
        base = output_tensors(model, batch)
        findings = _alone(model, layers, batch)
    for name, calls in outputs_of(model, layers, [batch]).items():
        pairs = zip(clean.get(name, [[]])[0], calls[0], strict=False)
        pairs = [(a, b) for a, b in pairs if a.shape == b.shape]
        if name in findings:
            findings[name].cumulated = _ratio(pairs)
    stale = _stale(model, batch)
    tried = [
        (f, computing([layers[name]], Mode.QUANTIZED)) for name, f in findings.items()
    ]
    tried += [(f, _statistics(*statistics)) for f, *statistics in stale]
    for done, (finding, alone) in enumerate(tried, 1):
        with float_mode(model), alone:
            finding.harm = _distance(base, output_tensors(model, batch), finding)
        finding.faults = faults_of(finding)
        if step is not None:
            step(done, len(tried))
    ordered = sorted((f for f, _ in tried), key=lambda f: -f.harm)
    idle = [n for n in layers if n not in findings]
    advice = 'no forward reaches it: its range is not known; leave it out (exclude)'
    return ordered + [
        Finding(n, precision=str(layers[n].precision), faults=[advice]) for n in idle
    ]


def faults_of(finding: Finding) -> list[str]:
    """What is wrong with a layer or a BatchNorm, with what to do, from its numbers."""
    facts, faults = finding.facts, []
    if finding.kind == 'BatchNorm':
        return [
            'its statistics are not those of these images (means off by '
            f'{facts["shift"]:.2f} deviations, variances {facts["scale"]:.1f}x): '
            'estimate them anew on training images (CalibrationHook)'
        ]
    if facts.get('below zero', 0) > CLIPPED:
        faults.append(
            f'{facts["below zero"]:.0%} of its inputs are negative, and its range is '
            'unsigned: calibrate it on images that show them'
        )
    elif facts.get('clipped', 0) > CLIPPED:
        faults.append(
            f'{facts["clipped"]:.0%} of its inputs are beyond its range: calibrate it '
            'again, or let fine-tuning learn it'
        )
    if facts.get('stretch', 0) > STRETCHED:
        faults.append(
            f'its range is {facts["stretch"]:.0f}x what 99.9 % of the inputs need: '
            'calibrate it again'
        )
    if facts.get('dead'):
        faults.append(
            f'{facts["dead"]:.0f} output channels have weights that are all 0 once '
            'quantized: ranges per channel (per_channel=True)'
        )
    weak = min(finding.weights or 99.0, finding.inputs or 99.0)
    if not faults and weak < 15:
        what = 'weights' if weak == finding.weights else 'inputs'
        bits = finding.precision
        faults.append(
            f'{bits} is too few bits for its {what} ({weak:.0f} dB): give it more '
            f"(fixed={{'{finding.name}': 'W8A8'}}), or learned rounding (mmmpq ptq)"
        )
    return faults


def _alone(
    model: nn.Module, layers: dict[str, QuantLayer], batch: Any
) -> dict[str, Finding]:
    """Each layer's own errors, on what the float net gives it."""
    findings: dict[str, Finding] = {}
    errors: dict[str, list[list[tuple[Tensor, Tensor]]]] = {}

    def hook(name: str) -> Callable:
        def look(layer: QuantLayer, args: tuple, kwargs: dict, out: Tensor) -> None:
            x = first_input(args, kwargs)
            if not x.numel():
                return
            w_bits, a_bits = layer.precision
            w = layer.w_quantizer(layer._latent_weight(), w_bits)
            q = layer.a_quantizer(x, a_bits)
            plain = layer._latent_weight()
            if name not in findings:
                findings[name] = Finding(name, precision=str(layer.precision))
                findings[name].facts = _facts(layer, x, q, w)
                errors[name] = [[], [], []]
            for pairs, (i, k) in zip(
                errors[name], ((q, w), (x, w), (q, plain)), strict=True
            ):
                pairs.append((out, layer.compute(i, k, layer.bias)))
                pairs[:] = [_sums(pairs)]  # no maps

        return look

    handles = [
        m.register_forward_hook(hook(n), with_kwargs=True) for n, m in layers.items()
    ]
    with hooked(handles):
        raw_outputs(model, batch)
    for name, (both, weights, inputs) in errors.items():
        finding = findings[name]
        finding.alone, finding.weights = _ratio(both), _ratio(weights)
        finding.inputs = _ratio(inputs)
    return findings


def _sums(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Two numbers in place of tensors, with the same energies of signal and noise."""
    signal = sum(a.double().square().sum() for a, _ in pairs).sqrt()
    noise = sum((a - b).double().square().sum() for a, b in pairs).sqrt()
    return signal, signal + noise


def _ratio(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Signal-to-noise ratio in dB of the second ones, at most 99."""
    if not pairs:
        return None
    signal, both = _sums(pairs)
    noise = float((both - signal).square())
    ratio = max(float(signal.square()), TINY) / max(noise, TINY)
    return min(99.0, 10 * float(torch.tensor(ratio).log10()))


def _facts(layer: QuantLayer, x: Tensor, q: Tensor, w: Tensor) -> dict[str, float]:
    """Numbers that say what is wrong with ranges and weights."""
    facts: dict[str, float] = {}
    flat, quantized = x.detach().float().flatten(), q.detach().float().flatten()
    if layer.precision.a_bits != 32:
        top, low = quantized.amax(), quantized.amin()
        energy = flat.square().sum().clamp_min(TINY)
        beyond = (flat - flat.clamp(float(low), float(top))).square().sum()
        facts['clipped'] = float(beyond / energy)
        if low >= 0:
            facts['below zero'] = float(flat.clamp_max(0).square().sum() / energy)
        every = flat.abs()[:: (flat.numel() // 100_000) | 1]
        span = float(every.quantile(0.999).clamp_min(TINY))
        steps, _ = layer.a_quantizer.grids(x, (layer.precision.a_bits,))
        levels = layer.a_quantizer.levels(layer.precision.a_bits)
        reach = float(steps.max()) * (levels[1] - levels[0])
        facts['stretch'] = reach / (2 * span if flat.min() < 0 else span)
    rows = layer._latent_weight().detach().flatten(1)
    dead = (w.detach().flatten(1) == 0).all(1) & (rows != 0).any(1)
    facts['dead'] = float(dead.sum())
    return facts


def _stale(
    model: nn.Module, batch: Any
) -> list[tuple[Finding, nn.Module, Tensor, Tensor]]:
    """BatchNorms whose statistics are far from the moments of what the float net gives
    them, with these; those before them mended."""
    findings: dict[nn.Module, tuple] = {}
    names = {norm: name for name, norm in norms_of(model).items()}
    with ExitStack() as mended, float_mode(model):

        def look(norm: nn.Module, args: tuple, kwargs: dict) -> None:
            mean, var = moments(first_input(args, kwargs))
            running = norm.running_var + norm.eps
            shift = float(((mean - norm.running_mean) / running.sqrt()).abs().mean())
            scale = float(((var + norm.eps) / running).log().abs().mean().exp())
            if norm not in findings and (shift > SHIFT or scale > SCALE):
                facts = dict(shift=shift, scale=scale)
                finding = Finding(names[norm], 'BatchNorm', facts=facts)
                findings[norm] = finding, norm, mean, var
                # What comes after it is not to be blamed for what it gives.
                mended.enter_context(_statistics(norm, mean, var))

        handles = [n.register_forward_pre_hook(look, with_kwargs=True) for n in names]
        with hooked(handles):
            raw_outputs(model, batch)
    return list(findings.values())


@contextmanager
def _statistics(norm: nn.Module, mean: Tensor, var: Tensor):
    before = norm.running_mean.clone(), norm.running_var.clone()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    try:
        yield
    finally:
        norm.running_mean.copy_(before[0])
        norm.running_var.copy_(before[1])


def _distance(base: list[Tensor], other: list[Tensor], finding: Finding) -> float:
    """Of the outputs; where their shapes follow from their values (two-stage
    detectors), the layer's own noise."""
    try:
        return output_distance(base, other)
    except ValueError:
        return 10 ** (-(finding.alone or 99.0) / 10)
