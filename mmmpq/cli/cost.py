"""Print what a config's model costs, per layer, and what its budgets leave open."""

import json
from pathlib import Path

from mmmpq.cli.flags.cost import parse_args
from mmmpq.costs import ChipEnergy, ChipLatency, Hardware, profile
from mmmpq.costs.bill import bill_of, layer_choices
from mmmpq.engine.launch import (
    load_config,
    search_hooks,
)
from mmmpq.layers import quantized_layers
from mmmpq.models import build_model
from mmmpq.policy import Precision
from mmmpq.registry import HOOKS
from mmmpq.search import SearchSpace, cost_tables, most_probable
from mmmpq.units import human
from mmmpq.visualization.progress import terminal


def reference(cfg, args):
    """Input shape and proposals: the flags', else those of the first budget."""
    budgets = (hook.get('budgets') for hook in search_hooks(cfg))
    first = next((each[0] for each in budgets if each), {})
    flags = dict(input_shape=args.input_shape, proposals=args.proposals)
    return [first.get(k) if v is None else v for k, v in flags.items()]


def budget_rows(model, hooks):
    """What each budget of the SearchHooks allows, and what the candidates can cost.

    Of a net of fixed precisions, or a float one, there is nothing to bound.

    Raises:
        ValueError: What the search would refuse: a key of a hook, or budgets that no
            choice of candidates meets, alone or together.
    """
    if not any(hasattr(m, 'candidates') for m in quantized_layers(model).values()):
        return []
    space = SearchSpace(model)
    rows = []
    for hook in hooks:
        tables = cost_tables(model, space, hook.budgets)
        for table in tables:
            table.check()
            row = dict(type=table.name, given=table.at.limit, limit=table.limit)
            row.update(min=table.min, max=table.max, floats=table.floats)
            row.update(unit=table.unit)
            rows.append(row)
        most_probable(space, tables)
    return rows


def on_chip(name, layers, bill):
    """What the layers of a bill take on a chip, and which of them wait for memory."""
    time, rows = ChipLatency(name), []
    energy = ChipEnergy(name) if time.chip.pj_per_cycle else None
    for layer, row in zip(layers, bill.layers, strict=True):
        precision = Precision(row['w_bits'], row['a_bits'])
        us, waits = time(layer, precision), time.waits(layer, precision)
        rows.append(dict(name=layer.name, us=us, waits=waits))
        if energy:
            rows[-1]['J'] = energy(layer, precision)
    total = {k: sum(row[k] for row in rows) for k in ('us', 'J') if k in rows[0]}
    memory = time.chip.memory is not None
    return dict(chip=name, memory=memory, layers=rows, **total)


def main(argv=None):
    args = parse_args(argv)
    hardware = Hardware.load(args.hardware) if args.hardware else None
    cfg = load_config(args)
    if args.policy and not Path(args.policy).suffix:
        Precision.parse(args.policy, '--policy')
    elif hardware and 'quant' in cfg.model:
        cfg.model.quant.hardware = args.hardware
    hooks = [HOOKS.build(dict(hook)) for hook in search_hooks(cfg)]
    model = build_model(cfg, args.policy)
    layers = profile(model, *reference(cfg, args))
    bill = bill_of(layers, layer_choices(model, layers, hardware))
    chip = on_chip(args.chip, layers, bill) if args.chip else None
    budgets = budget_rows(model, hooks)
    if args.json:
        more = dict(budgets=budgets, on_chip=chip)
        more = {key: value for key, value in more.items() if value}
        print(json.dumps({**bill.to_dict(), **more}, indent=2))
        return
    console = terminal(140)
    console.print(bill.table(args.config))
    if chip:
        amounts = ', '.join(
            human(chip[unit], unit) for unit in ('us', 'J') if unit in chip
        )
        waits = sum(row['waits'] for row in chip['layers'])
        console.print(
            f'on {args.chip}: {amounts}; '
            + (
                f'{waits} of {len(bill.layers)} layers wait for memory'
                if chip['memory']
                else 'its memory is not modelled'
            ),
            soft_wrap=True,
        )
    for row in budgets:
        keys = ('limit', 'min', 'max', 'floats')
        limit, low, high, floats = (human(row[k], row['unit']) for k in keys)
        console.print(
            f'budget {row["type"]} {row["given"]}: {limit}; the candidates span {low} '
            f'to {high}, of which {floats} are of float layers',
            soft_wrap=True,
        )
