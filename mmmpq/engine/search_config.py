"""What the SearchHook of a config says of its costs."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mmmpq.costs import Budget
from mmmpq.costs.budget_text import budget_cfgs
from mmmpq.engine.launch import search_hooks
from mmmpq.user_config import type_name


def search_budgets(cfg: Config, limits: Sequence[str] | None) -> dict[str, Any]:
    """The options of a config's SearchHook, with the budgets of a command line, if
    there are any, put into the config.

    They take the reference input and other keys from the config's budget of their type,
    else the reference input of its first budget or penalty that has one.

    Raises:
        ValueError: There is no budget at all, or one that cannot be read.
    """
    options = next(iter(search_hooks(cfg)), dict(type='mmmpq.SearchHook'))
    budgets = list(options.get('budgets') or ())
    if not limits and not budgets:
        raise ValueError(
            '--budget: none is given, and the config has no SearchHook with budgets; '
            'accepted is a limit such as W4A4'
        )
    if limits:
        priced = [p.get('cost') or {} for p in options.get('penalties') or ()]
        shared = {
            key: reference[key]
            for reference in reversed([*budgets, *priced])
            for key in ('input_shape', 'proposals')
            if key in reference
        }
        by_type = {type_name(b): dict(b) for b in budgets}
        table = by_type.get('Latency', {}).get('table')
        cfgs = [c for text in limits for c in budget_cfgs(text, 'BOPs', {}, table)]
        options['budgets'] = [{**by_type.get(c['type'], shared), **c} for c in cfgs]
        for budget in options['budgets']:  # before what takes hours
            Budget.build(budget, '--budget')
    return options


def search_reference(cfg: Config) -> tuple[str, dict[str, Any]]:
    """Type of the cost of the search in a config, and its reference input, proposals
    and chip."""
    costs = []
    for hook in search_hooks(cfg)[:1]:
        costs += hook.get('budgets') or ()
        costs += [p.get('cost') or {} for p in hook.get('penalties') or ()]
    first = next((c for c in costs if c), {})
    keys = 'input_shape', 'proposals', 'chip'
    common = {key: first[key] for key in keys if key in first}
    return type_name(first) or 'BOPs', common
