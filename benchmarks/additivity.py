"""Do the scores of single groups add up to what a whole policy costs?

Random policies inside a budget are measured, without training, and compared with what
the scores foretell: the sum over groups of Fisher scores or of sensitivities, the
latter with and without a term for pairs of groups. That of a pair is measured once,
with both at their cheapest candidate, and grows with the roots of their sensitivities.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.config import Config
from rich.progress import track
from scipy.stats import pearsonr, spearmanr

from mmmpq.baselines import fisher, sensitivity
from mmmpq.baselines.choices import random_choice
from mmmpq.cli.baseline import loss_of_choice, search_hook
from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.engine.launch import run
from mmmpq.engine.supernet import float_supernet_runner
from mmmpq.fileio import atomic_write
from mmmpq.models import calibrate
from mmmpq.search import Search


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='of a search, with load_from')
    parser.add_argument('--budgets', nargs='+', default=['W2A2', 'W3A3'])
    parser.add_argument('--policies', type=int, default=60, help='(default: 60)')
    parser.add_argument('--batches', type=int, default=4, help='(default: 4)')
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    parser.add_argument('--json', type=Path, help='where the correlations go')
    return parser.parse_args(argv)


def pair_terms(
    loss_of, base: float, sensitivities: list[np.ndarray], cheapest: list[int]
) -> dict[tuple[int, int], float]:
    """What two groups at their cheapest cost beyond their sum, in units of the root of
    the product of their sensitivities."""
    count = len(cheapest)
    found = {}
    for a, b in track([*combinations(range(count), 2)], 'pairs'):
        choice = [cheapest[g] if g in (a, b) else None for g in range(count)]
        each = [max(sensitivities[g][cheapest[g]], 1e-9) for g in (a, b)]
        found[a, b] = (loss_of(choice) - base - sum(each)) / np.sqrt(np.prod(each))
    return found


def foretold(
    choice: list[int],
    harms: list[np.ndarray],
    pairs: dict[tuple[int, int], float] | None = None,
    apart: int = 0,
) -> float:
    """The sum of the scores of a choice, and of the terms of groups up to ``apart``."""
    each = [float(h[j]) for h, j in zip(harms, choice, strict=True)]
    roots = np.sqrt(np.maximum(each, 0))
    terms = (pairs or {}).items()
    return sum(each) + sum(
        r * roots[a] * roots[b] for (a, b), r in terms if b - a <= apart
    )


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir = f'work_dirs/{Path(args.config).stem}_additivity'
    cfg.launcher = 'none'
    hooks = {text: search_hook(cfg, [text]) for text in args.budgets}
    hook = hooks[args.budgets[0]]
    runner = float_supernet_runner(cfg, args.seed, True)
    model = unwrapped(runner)
    calibrate(model, train_batches(runner, hook.calibration))
    batches = train_batches(runner, args.batches)
    search = Search(model, hook.budgets, (), seed=args.seed)
    space, loss_of = search.space, loss_of_choice(search, batches)
    base = loss_of([None] * len(space.groups))
    scores = fisher.measure(model, space, batches)
    sensitivities = sensitivity.measure(model, space, batches)
    cheapest = [
        min(range(len(g.candidates)), key=lambda j, g=g: np.prod(g.candidates[j]))
        for g in space.groups
    ]
    pairs = pair_terms(loss_of, base, sensitivities, cheapest)
    ways = {
        'Fisher': lambda c: foretold(c, scores),
        'sensitivity': lambda c: foretold(c, sensitivities),
        'and neighbours': lambda c: foretold(c, sensitivities, pairs, 1),
        'and all pairs': lambda c: foretold(c, sensitivities, pairs, len(cheapest)),
    }
    records = []
    for text, hook in hooks.items():
        tables = Search(model, hook.budgets, (), space=space).tables
        choices = [random_choice(tables, args.seed + i) for i in range(args.policies)]
        measured = [loss_of(c) - base for c in track(choices, text)]
        for name, way in ways.items():
            values = [way(c) for c in choices]
            record = dict(
                budget=text,
                scores=name,
                spearman=round(float(spearmanr(values, measured)[0]), 3),
                pearson=round(float(pearsonr(values, measured)[0]), 3),
                policies=args.policies,
            )
            records.append(record)
            print(*record.values(), sep='\t')
    if args.json:
        atomic_write(args.json, json.dumps(records, indent=1) + '\n')


if __name__ == '__main__':
    run(main)
