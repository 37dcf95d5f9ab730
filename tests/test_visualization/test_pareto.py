"""The curve of many budgets: what is drawn where."""

import numpy as np

from mmmpq.visualization.pareto import measured_front, pareto
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


def test_measured_nets_and_the_line_over_them():
    points = [
        dict(kind=kind, name=name, costs=dict(BOPs=cost), score=score)
        for kind, name, cost, score in (
            ('front', '00', 1e6, 70.0),
            ('front', '01', 3e6, 90.0),
            ('milp', 'W3A3', 2e6, 85.0),
            ('uniform', 'W3A3', 2.5e6, 80.0),
        )
    ]
    samples = np.array([1.5e6, 2e6]), np.array([60.0, 75.0])
    args = points, 'BOPs', 'BOPs', 'top1'
    (ax,) = measured_front(*args, samples, LIGHT).axes
    cloud, front, *kinds = ax.get_lines()
    np.testing.assert_allclose(cloud.get_xydata(), [[1.5, 60], [2, 75]])
    np.testing.assert_allclose(
        front.get_xydata(), [[1, 70], [2, 85], [2.5, 85], [3, 90]]
    )
    assert [k.get_label() for k in kinds] == [
        'NSGA-II',
        'MILP on a linear predictor',
        'uniform',
    ]
    np.testing.assert_allclose(kinds[2].get_xydata(), [[2.5, 80]])
    assert [t.get_text() for t in ax.texts] == ['W3A3']
    assert ax.get_xlabel() == 'BOPs (MBOPs)' and ax.get_ylabel() == 'top1'
    assert len(measured_front(*args, None, LIGHT).axes[0].get_lines()) == 4
