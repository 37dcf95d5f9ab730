"""What the figures hold, read from their artists."""

from itertools import pairwise

import numpy as np
import pytest

from mmmpq.visualization import curves, heat_map, names, plots
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.theme import LIGHT, draw


def search(groups=3, layers=2, records=4, candidates=((2, 2), (3, 3), (4, 4))):
    names = [f'backbone.layer{g}' for g in range(groups)]
    header = {
        name: {
            'layers': [f'{name}.conv{k}' for k in range(layers)],
            'candidates': [list(c) for c in candidates],
        }
        for name in names
    }
    share = [1 / len(candidates)] * len(candidates)
    rows = [
        dict(
            iter=i, loss=1.0, penalties={'barrier': 1.0, 'prob1': 10.0**i},
            expected=[1.1e9, 2e6], realised=[1.0e9, 1e6], bound=[3e9, None],
            probs=dict.fromkeys(names, share),
        )
        for i in range(records)
    ]  # fmt: skip
    budgets = [
        dict(type='BOPs', limit=1.2e9, unit='BOPs'),
        dict(type='WeightBytes', limit=3e6, unit='bytes'),
    ]
    bits = {layer: (2, 4) for g in header.values() for layer in g['layers']}
    return bits, SearchHistory(header, budgets, rows)


def test_bits_of_every_layer_are_drawn():
    bits, history = search()
    bits = {'stem': (8, 8), **bits, 'head': (32, 32)}
    (ax,) = plots.bits(bits, history, LIGHT).axes
    bars = [bar for box in ax.containers for bar in box]
    assert [bar.get_height() for bar in bars] == [8, 8, *[2, 4] * 6, 9.5, 9.5]
    assert [bar.get_hatch() is not None for bar in bars] == [True] * 2 + [
        False
    ] * 12 + [True] * 2
    assert [t.get_text() for t in ax.get_yticklabels()][-2:] == ['8', 'float']
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels[:2] == ['stem', 'layer0.conv0']  # 'backbone' stands above, once


@pytest.mark.parametrize(('groups', 'rows'), [(5, 1), (24, 1), (75, 4)])
def test_names_under_the_bars_never_overlap(groups, rows):
    bits, history = search(groups=groups)
    fig = plots.bits(bits, history, LIGHT)
    assert len(fig.axes) == rows
    fig.draw_without_rendering()
    drawn = 0
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels()]
        assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))
        drawn += len(boxes)
    assert drawn == 2 * groups


@pytest.mark.parametrize('groups', [1, 60])
def test_titles_of_groups_never_overlap(groups):
    bits, history = search(groups=groups)
    long = {f'backbone.stages.{n}': g for n, g in history.groups.items()}
    probs = {f'backbone.stages.{n}': p for n, p in history.records[0]['probs'].items()}
    history = SearchHistory(long, [], [dict(history.records[0], probs=probs)])
    fig = plots.probabilities(bits, history, LIGHT)
    fig.draw_without_rendering()
    for ax in fig.axes[:groups]:
        left, right = ax._left_title, ax._right_title
        assert right.get_text() == '→ W2A4'
        assert left.get_window_extent().x1 < right.get_window_extent().x0


def test_a_skipped_block_has_no_bits():
    bits, history = search(candidates=((0, 0), (2, 4)))
    bits.update(dict.fromkeys(history.groups['backbone.layer1']['layers'], (0, 0)))
    (ax,) = plots.bits(bits, history, LIGHT).axes
    heights = [bar.get_height() for box in ax.containers for bar in box]
    assert heights == [2, 4] * 2 + [0, 0] * 2 + [2, 4] * 2
    assert [t.get_text() for t in ax.get_yticklabels()] == ['0', '1', '2', '3', '4']
    axes = plots.probabilities(bits, history, LIGHT).axes
    titles = {ax.get_title(loc='right') for ax in axes[:3]}
    assert titles == {'→ W2A4', '→ skip'}


def test_probabilities_are_stacked_to_one():
    bits, history = search(groups=1)
    (ax,) = plots.probabilities(bits, history, LIGHT).axes
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in ax.collections]
    assert np.allclose(tops, [1 / 3, 2 / 3, 1])


def test_candidates_are_coloured_by_bits():
    groups = {'a': {'candidates': [[8, 8], [2, 2]]}, 'b': {'candidates': [[2, 4]]}}
    assert list(plots.candidate_colors(groups)) == [(2, 2), (2, 4), (8, 8)]


def test_cost_has_units_budget_and_bound():
    _, history = search()
    fig = curves.costs(history, [1.15e9, None], LIGHT)
    bops, weights = fig.axes
    assert bops.get_ylabel() == 'GBOPs'
    assert weights.get_ylabel() == 'MB'
    lines = {line.get_label(): line.get_ydata() for line in bops.get_lines()}
    assert np.allclose(lines['budget 1.20 GBOPs'], 1.2)
    assert np.allclose(lines['bound B(t)'], 3.0)
    assert np.allclose(lines['expected'], 1.1)
    assert np.allclose(lines['realised'], 1.0)
    assert np.allclose(lines['policy.json'], 1.15)
    labels = {line.get_label() for line in weights.get_lines()}
    assert labels == {'budget 3.00 MB', 'expected', 'realised'}


def test_wide_range_of_a_penalty_is_logarithmic():
    _, history = search()
    task, barrier, prob1 = curves.penalties(history, LIGHT).axes
    assert [ax.get_yscale() for ax in (task, barrier, prob1)] == [
        'linear', 'linear', 'log'
    ]  # fmt: skip
    assert prob1.get_title(loc='left') == 'prob1'


def test_moving_mean_leaves_out_nan():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    smooth = curves._moving_mean(values, 1)
    assert np.allclose(smooth, [1.0, np.nan, 4.0, 4.0], equal_nan=True)


def test_long_names_keep_their_end():
    assert names.shorten('backbone.layer1.0.conv1', 18) == '…layer1.0.conv1'
    assert names.shorten('neck.conv', 18) == 'neck.conv'
    assert len(names.shorten('a' * 50, 10)) == 10


def test_names_are_no_formulas():
    """Layers may be called anything; a lone dollar sign, or two, stay what they are."""
    policy, history = search(groups=2)
    first, *others = history.groups
    odd = {first: 'a$_{$\\x', **{name: f'{name}$' for name in others}}
    groups = {odd[name]: group for name, group in history.groups.items()}
    for group in groups.values():
        group['layers'] = [f'{name}$_{{$' for name in group['layers']]
    policy = {f'{name}$_{{$': bits for name, bits in policy.items()}
    for record in history.records:
        record['probs'] = {odd[name]: p for name, p in record['probs'].items()}
        record['penalties'] = {f'{n}$_{{$': v for n, v in record['penalties'].items()}
    history = SearchHistory(groups, history.budgets, history.records)
    for figure, *args in (
        (plots.bits, policy, history),
        (plots.probabilities, policy, history),
        (curves.penalties, history),
    ):
        assert draw(figure, LIGHT, *args).startswith(b'\x89PNG')


LONG = [
    f'backbone.stages.{i}.blocks.{j}.attn.w_msa.relative.qkv'
    for i in (0, 1, 10)
    for j in range(9)
]


@pytest.mark.parametrize('length', [12, 16, 34])
def test_short_names_are_told_apart(length):
    short = names.short_names(LONG, length)
    assert list(short) == LONG
    assert len(set(short.values())) == len(LONG)
    assert max(map(len, short.values())) <= length


def test_what_is_common_is_cut_at_a_dot():
    assert names.common_prefix(LONG) == 'backbone.stages.'
    assert names.common_prefix(['a.conv1', 'a.conv2']) == 'a.'
    assert names.common_prefix(['a.b', 'a']) == ''
    assert names.common_prefix(['a.b.c']) == ''


def test_expected_bits_are_means_over_the_candidates():
    bits, history = search(groups=30)
    fig = heat_map.expected_bits(bits, history, LIGHT)
    weights, activations = (ax.images[0].get_array() for ax in fig.axes[:2])
    assert weights.shape == activations.shape == (30, 4)
    assert np.allclose(weights, 3) and np.allclose(activations, 3)
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert len(set(labels)) == 30 and 'layer29' in labels  # without 'backbone.'
