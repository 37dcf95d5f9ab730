"""Print what a config's model costs, per layer, and what its budgets leave open."""

import json
from pathlib import Path

from mmmpq.cli.flags.cost import parse_args
from mmmpq.costs import Hardware
from mmmpq.costs.bill import cost
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
    bill = cost(model, *reference(cfg, args), hardware)
    budgets = budget_rows(model, hooks)
    if args.json:
        more = dict(budgets=budgets) if budgets else {}
        print(json.dumps({**bill.to_dict(), **more}, indent=2))
        return
    console = terminal(140)
    console.print(bill.table(args.config))
    for row in budgets:
        keys = ('limit', 'min', 'max', 'floats')
        limit, low, high, floats = (human(row[k], row['unit']) for k in keys)
        console.print(
            f'budget {row["type"]} {row["given"]}: {limit}; the candidates span {low} '
            f'to {high}, of which {floats} are of float layers',
            soft_wrap=True,
        )
