"""Print what a config's model costs: MACs, BOPs and weight bytes per layer."""

import argparse
import json
from pathlib import Path

from mmengine import Config
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table

from mmmpq.costs import BOPs, Hardware, WeightBytes, profile, total_cost
from mmmpq.launch import add_cfg_options, add_reference_arguments
from mmmpq.policy import FLOAT, Precision
from mmmpq.visualization.units import human

EXAMPLE = """example:
  mmmpq cost configs/bpnas/retinanet_r50_coco.py --policy W4A4
  mmmpq cost configs/bpnas/resnet18_imagenet.py \\
      --hardware configs/_base_/hardware/matched_248.json --json

Without --policy, layers that are to be searched show their largest candidate.
Float layers have 32 bits."""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of mmdet, mmpretrain or mmmpq')
    parser.add_argument(
        '--policy', help='a uniform precision such as W4A4, or a policy.json'
    )
    parser.add_argument(
        '--hardware', help='hardware profile (JSON) that restricts the candidates'
    )
    add_reference_arguments(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def _with_quant(model, policy):
    """The model config with a fixed policy, wrapped in QuantModel if it is not yet."""
    if model.get('type') not in ('QuantModel', 'mmmpq.QuantModel'):
        base = model.pop('type')
        model.update(type='mmmpq.QuantModel', base_type=base, quant=dict())
    quant = model['quant']
    quant.pop('candidates', None)
    quant['policy'] = policy
    return model


def _without_pretrained(cfg):
    """Drop what would download weights; costs do not depend on them."""
    if isinstance(cfg, dict):
        for key, value in list(cfg.items()):
            pretrained = isinstance(value, dict) and value.get('type') == 'Pretrained'
            if key == 'init_cfg' and pretrained:
                cfg[key] = None
            elif key == 'pretrained':
                cfg[key] = None if not isinstance(value, bool) else False
            else:
                _without_pretrained(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            _without_pretrained(value)


def search_budget(cfg):
    for hook in cfg.get('custom_hooks') or ():
        if str(hook.get('type')).endswith('SearchHook') and hook.get('budgets'):
            return hook['budgets'][0]
    return {}


def build_model(cfg, policy=None):
    """Build ``cfg.model`` without loading weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = ConfigDict(cfg.model)
    _without_pretrained(model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model if policy is None else _with_quant(model, policy))


def layer_choices(model, profiles, hardware=None):
    """The precisions that every quantized layer may take, in a dict by name.

    Layers of one group keep only what the hardware allows for all of them.
    """
    modules = dict(model.named_modules())
    groups = {}
    for layer in profiles:
        module = modules[layer.name]
        candidates = getattr(module, 'candidates', None)
        fixed = getattr(module, 'precision', None)
        if candidates is not None:
            groups.setdefault(module.relaxation, (candidates, []))[1].append(layer)
        elif fixed is not None and fixed != FLOAT:
            groups[layer.name] = ((fixed,), [layer])
    choices = {}
    for candidates, layers in groups.values():
        for layer in layers if hardware else ():
            try:
                candidates = hardware.restrict(layer.type, candidates)
            except ValueError as error:
                raise ValueError(f'layer {layer.name!r}: {error}') from error
        choices.update({layer.name: tuple(candidates) for layer in layers})
    return choices


def report(profiles, choices):
    """The numbers as one dict: ``layers``, ``total``, ``min``, ``max``."""
    bops, weight_bytes = BOPs(), WeightBytes()
    shown = {
        name: max(c, key=lambda p: (p[0] * p[1], p)) for name, c in choices.items()
    }

    def total(pick):
        def of(cost):
            chosen = {
                layer.name: pick(choices[layer.name], key=lambda p: cost(layer, p))
                for layer in profiles
                if layer.name in choices
            }
            return total_cost(cost, profiles, chosen)

        return dict(macs=macs, bops=of(bops), weight_bytes=of(weight_bytes))

    macs = sum(layer.macs for layer in profiles)
    layers = []
    for layer in profiles:
        precision = shown.get(layer.name, FLOAT)
        layers.append(
            dict(
                name=layer.name,
                type=layer.type,
                macs=layer.macs,
                bops=bops(layer, precision),
                weight_bytes=weight_bytes(layer, precision),
                w_bits=precision.w_bits,
                a_bits=precision.a_bits,
            )
        )
    return dict(
        layers=layers,
        total=dict(
            macs=macs,
            bops=total_cost(bops, profiles, shown),
            weight_bytes=total_cost(weight_bytes, profiles, shown),
        ),
        min=total(min),
        max=total(max),
    )


def show(result, title):
    """Print the report as a table."""
    table = Table(title=title)
    table.add_column('layer', overflow='fold')
    for name in ('type', 'W', 'A', 'MACs', 'BOPs', 'weights'):
        table.add_column(name, justify='left' if name == 'type' else 'right')

    def numbers(row):
        return (
            human(row['macs'], 'MACs'),
            human(row['bops'], 'BOPs'),
            human(row['weight_bytes'], 'B'),
        )

    for row in result['layers']:
        bits = (str(row['w_bits']), str(row['a_bits']))
        table.add_row(row['name'], row['type'], *bits, *numbers(row))
    table.add_section()
    for name in ('total', 'min', 'max'):
        table.add_row(name, '', '', '', *numbers(result[name]))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)


def main(argv=None):
    args = parse_args(argv)
    hardware = Hardware.load(args.hardware) if args.hardware else None
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.policy and not Path(args.policy).suffix:
        Precision.parse(args.policy, '--policy')
    model = build_model(cfg, args.policy)
    budget = search_budget(cfg)
    profiles = profile(
        model,
        args.input_shape or budget.get('input_shape'),
        args.proposals or budget.get('proposals'),
    )
    result = report(profiles, layer_choices(model, profiles, hardware))
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        show(result, args.config)
