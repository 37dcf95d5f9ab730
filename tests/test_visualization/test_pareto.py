"""The curve of many budgets: what is drawn where."""

import numpy as np

from mmmpq.visualization.pareto import pareto
from mmmpq.visualization.theme import LIGHT


def point(budget, cost, score, top1, kind='BOPs', unit='BOPs'):
    found = dict(type=kind, unit=unit, cost=cost)
    metrics = dict(top1=top1)
    return dict(budget=budget, score=score, budgets=[found], bops=2e6, metrics=metrics)


POINTS = [
    point('W4A4', 4e6, -1.0, 80.0),
    point('W2A2', 1e6, -3.0, 70.0),
    point('W3A3', 2e6, -2.0, 85.0),
    point('2 MBOPs', 2e6, -2.0, 85.0),
]


def test_points_their_front_and_their_names():
    scores, top1 = pareto(POINTS, 'top1', LIGHT).axes
    front, dots = top1.get_lines()
    np.testing.assert_allclose(dots.get_xydata(), [[1, 70], [2, 85], [4, 80]])
    np.testing.assert_allclose(front.get_ydata(), [70, 85, 85])  # W4A4 is worse
    assert [t.get_text() for t in top1.texts] == ['W2A2', 'W3A3 +1', 'W4A4']
    assert top1.get_xlabel() == 'BOPs (MBOPs)' and top1.get_ylabel() == 'top1'
    np.testing.assert_allclose(scores.get_lines()[1].get_ydata(), [-3, -2, -1])


def test_without_a_metric_there_is_one_panel():
    assert len(pareto(POINTS, None, LIGHT).axes) == 1


def test_costs_of_several_kinds_are_compared_in_bops():
    points = [*POINTS, point('3 ms', 3000.0, -1.5, 75.0, 'Latency', 'us')]
    (ax,) = pareto(points, None, LIGHT).axes
    assert ax.get_xlabel() == 'BOPs (MBOPs)'
    assert set(ax.get_lines()[1].get_xdata()) == {2.0}
