"""What a search among subnets leaves behind: the front, a policy for every point."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmmpq.costs.budget_text import file_name
from mmmpq.fileio import atomic_write
from mmmpq.policy import Policy
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.code import Codes
from mmmpq.subnets.evolution import best_inside, nondominated
from mmmpq.subnets.search import Candidate
from mmmpq.subnets.space import SubnetSpace
from mmmpq.units import human
from mmmpq.visualization.pareto import measured_front
from mmmpq.visualization.theme import LIGHT, draw

KINDS = {'front': 'NSGA-II', 'milp': 'MILP', 'uniform': 'uniform'}


class SubnetResults:
    """Measured subnets: files, tables, and the best inside each budget.

    Args:
        space: The subnets.
        budgets: The budgets.
        candidates: What the search proposed.
        metrics: Of each of them.
        scores: Of each of them what is to be large (n,).
        metric: What ``scores`` is.
        meta: For the meta of all policies.
        found: For the head of ``front.json``.
    """

    def __init__(
        self,
        space: SubnetSpace,
        budgets: SubnetBudgets,
        candidates: Sequence[Candidate],
        metrics: Sequence[dict[str, float]],
        scores: np.ndarray,
        metric: str,
        meta: dict[str, Any],
        found: dict[str, Any],
    ) -> None:
        self.space, self.budgets, self.metric = space, budgets, metric
        self.meta, self.found = meta, found
        costs = [budgets.costs.of(c.subnet) for c in candidates]
        on_front = nondominated(np.array(costs)[:, budgets.minimise], scores)
        self.points = [
            dict(
                kind=c.kind,
                name=c.name,
                score=float(score),
                predicted=c.predicted,
                pareto=bool(front),
                costs=dict(zip(budgets.names, cost, strict=True)),
                metrics=m,
                policy=f'policies/{c.kind}_{file_name(c.name)}.json',
                subnet=c.subnet,
            )
            for c, m, score, cost, front in zip(
                candidates, metrics, scores, costs, on_front, strict=True
            )
        ]

    def best(self, budget: str, kind: str = '') -> dict[str, Any] | None:
        """The best point inside a budget, or None where none is."""
        points = [p for p in self.points if p['kind'].startswith(kind)]
        if not points:
            return None
        costs = np.array([list(p['costs'].values()) for p in points])
        scores = np.array([p['score'] for p in points])
        best = best_inside(scores, costs, self.budgets.limits[budget])
        return None if best is None else points[best]

    def write(
        self,
        folder: Path,
        target: str | None = None,
        samples: tuple[Codes, np.ndarray] | None = None,
    ) -> None:
        """Writes policies, and the front as JSON, CSV and picture.

        Args:
            folder: Where to.
            target: The budget of which the best net is also ``policy.json``.
            samples: Codes and scores of other nets, for the picture's background.

        Raises:
            ValueError: No net is inside ``target``; all other files are written.
        """
        budgets, names = self.budgets, self.budgets.names
        for point in self.points:
            self._policy(point).save(folder / point['policy'])
        head = {}
        for name, limit in budgets.limits.items():
            best = self.best(name)
            bounds = {names[i]: limit[i] for i in np.flatnonzero(np.isfinite(limit))}
            head[name] = dict(limits=bounds, best=best and best['policy'])
            if best:
                policy = self._policy(best, name)
                policy.save(folder / f'policy_{file_name(name)}.json')
                if name == target:
                    policy.save(folder / 'policy.json')
        front = dict(self.found, metric=self.metric, budgets=head, points=self.points)
        atomic_write(folder / 'front.json', json.dumps(front, indent=2) + '\n')
        atomic_write(folder / 'front.csv', self._csv())
        i = budgets.minimise[0]
        cloud = samples and (budgets.costs(samples[0])[:, i], samples[1])
        cost = names[i], budgets.unit(i)
        picture = draw(measured_front, LIGHT, self.points, *cost, self.metric, cloud)
        atomic_write(folder / 'front.png', picture)
        if target and not self.best(target):
            raise ValueError(
                f'--target-budget: none of the {len(self.points)} measured nets is '
                f'inside {target!r}; policy.json is not written'
            )

    def show(self, console: Console) -> None:
        """The front, and what is best inside each budget beside the alternatives."""
        i = self.budgets.minimise[0]
        cost, unit = self.budgets.names[i], self.budgets.unit(i)
        table = Table('front', 'predicted', cost, self.metric, title='measured front')
        for point in sorted(self.points, key=lambda p: p['costs'][cost]):
            if point['pareto']:
                table.add_row(
                    f'{KINDS[point["kind"]]} {point["name"]}',
                    f'{point["predicted"]:.4g}',
                    human(point['costs'][cost], unit),
                    f'{point["score"]:.4g}',
                )
        console.print(table)
        table = Table('budget', title=f'{self.metric} of the best inside each budget')
        kinds = [k for k in KINDS if any(p['kind'] == k for p in self.points)]
        for kind in kinds:
            table.add_column(KINDS[kind], justify='right')
            table.add_column('used', justify='right')
        for budget, limit in self.budgets.limits.items():
            row = [budget]
            for kind in kinds:
                best = self.best(budget, kind)
                used = best and max(np.array([*best['costs'].values()]) / limit)
                row += [f'{best["score"]:.4g}', f'{used:.1%}'] if best else ['–', '']
            table.add_row(*row)
        console.print(table)

    def _policy(self, point: dict[str, Any], *budgets: str) -> Policy:
        policy = self.space.policy(point['subnet'])
        costs = self.budgets.describe(point['subnet'], budgets)
        policy.meta.update(**self.meta, **costs, metrics=point['metrics'])
        return policy

    def _csv(self) -> str:
        out = io.StringIO()
        keys = ('kind', 'name', 'score', 'predicted', 'pareto', 'policy')
        writer = csv.writer(out, lineterminator='\n')
        writer.writerow([*keys, *self.budgets.names])
        for point in self.points:
            row = [point[key] for key in keys]
            writer.writerow([*row, *point['costs'].values()])
        return out.getvalue()
