"""Paired differences between methods, with intervals, corrected for their number."""

from collections.abc import Iterable, Sequence
from statistics import mean

import numpy as np
from scipy.stats import ttest_1samp

COLUMNS = (
    *('set', 'budget', 'method', 'pairs', 'difference', '95 % interval'),
    *('p', 'p (Holm)'),
)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number m: max_{j<=i} min(1, (m - j) p_(j)), sorted
    upwards (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).

    Examples:
        >>> [round(each, 3) for each in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    found, least = [0.0] * len(p), 0.0
    for j, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - j) * p[i]))
        found[i] = least
    return found


def differences(records: Iterable[dict], reference: str) -> list[dict]:
    """Accuracy of ``reference`` minus that of every other method, by seed.

    Runs of one float net count once, by their mean difference: search seeds say nothing
    of other float nets. Student's t, two-sided; all rows are one family for Holm.
    """
    scores: dict[tuple, dict[int, tuple[int, float]]] = {}
    for r in records:
        start = r['seed'] % r['settings'].get('floats', r['seed'] + 1)
        cell = scores.setdefault((r['set'], r['budget'], r['method']), {})
        cell[r['seed']] = start, r['accuracy']
    rows = []
    for (name, budget, method), runs in sorted(scores.items()):
        others = scores.get((name, budget, reference), {})
        by_float: dict[int, list[float]] = {}
        for seed in runs.keys() & others.keys():
            start, accuracy = runs[seed]
            by_float.setdefault(start, []).append(others[seed][1] - accuracy)
        if method == reference or len(by_float) < 2:
            continue
        values = [mean(each) for each in by_float.values()]
        with np.errstate(all='ignore'):
            test = ttest_1samp(values, 0.0)
            low, high = test.confidence_interval(0.95)
        if np.ptp(values) == 0:
            low = high = values[0]
        rows.append(
            dict(
                set=name,
                budget=budget,
                method=method,
                pairs=len(values),
                difference=mean(values),
                low=float(low),
                high=float(high),
                p=1.0 if np.isnan(test.pvalue) else float(test.pvalue),
            )
        )
    for row, p in zip(rows, holm([row['p'] for row in rows]), strict=True):
        row['holm'] = p
    return rows


def markdown(rows: list[dict], reference: str) -> str:
    """The table; a difference whose interval leaves out 0 is bold."""
    lines = [
        f'`{reference}` minus each method, paired by float net and seed.',
        '',
        '| ' + ' | '.join(COLUMNS) + ' |',
        '| ' + ' | '.join(['---'] * 3 + ['---:'] * 5) + ' |',
    ]
    for row in rows:
        digits = 2 if max(abs(row['low']), abs(row['high'])) >= 1 else 4
        difference = f'{row["difference"]:+.{digits}f}'
        if row['low'] * row['high'] > 0:
            difference = f'**{difference}**'
        texts = (
            *(row['set'], row['budget'], row['method'], str(row['pairs']), difference),
            f'{row["low"]:+.{digits}f} to {row["high"]:+.{digits}f}',
            *(f'{row[key]:.3f}' for key in ('p', 'holm')),
        )
        lines.append('| ' + ' | '.join(texts) + ' |')
    return '\n'.join(lines) + '\n'
