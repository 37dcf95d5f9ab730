"""benchmarks/search_quality.py: its configs, table and plot, on records made up."""

import csv
import json
import sys
from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console

from mmmpq.policy import Precision
from mmmpq.search import SearchSpace
from mmmpq.visualization.theme import LIGHT


@pytest.fixture(scope='module')
def quality():
    import search_quality

    return search_quality


@pytest.fixture(scope='module')
def report(quality):
    return sys.modules['quality_report']


def record(method='bpnas_sampled', seed=0, accuracy=90.0, **changes):
    return dict(
        set='digits',
        method=method,
        budget='W3A3',
        seed=seed,
        metric='accuracy/top1',
        accuracy=accuracy,
        bops=90.0,
        limit=100.0,
        bops_before=None,
        search_seconds=10.0,
        finetune_seconds=5.0,
        memory_mib=500.0,
        start='searched',
        settings=dict(from_float=False, search_options={}, finetune_options={}),
        **changes,
    )


RECORDS = [
    record(accuracy=90.0, seed=0) | dict(bops_before=80.0),
    record(accuracy=92.0, seed=1) | dict(bops_before=110.0, memory_mib=700.0),
    record(accuracy=94.0, seed=2) | dict(bops_before=100.0, bops=99.0),
    record('uniform', accuracy=91.0) | dict(search_seconds=2.0),
    record('uniform', accuracy=88.0) | dict(budget='W2A2', bops=40.0, limit=40.0),
    record('random', accuracy=0.5) | dict(set='shapes', metric='coco/bbox_mAP'),
]


def test_summary_by_hand(report):
    rows = {(r['set'], r['budget'], r['method']): r for r in report.summarise(RECORDS)}
    assert len(rows) == 4
    row = rows['digits', 'W3A3', 'bpnas_sampled']
    assert row['runs'] == 3
    assert row['accuracy'] == pytest.approx(92)
    assert row['spread'] == pytest.approx(2)  # sqrt((4 + 0 + 4) / 2)
    assert row['used'] == pytest.approx((0.9 + 0.9 + 0.99) / 3)
    assert row['before'] == pytest.approx(2 / 3)  # 110 of 100 is outside
    assert row['used_before'] == pytest.approx(2.9 / 3)
    assert row['after'] == 1
    assert row['memory_mib'] == 700
    assert row['best']
    other = rows['digits', 'W3A3', 'uniform']
    assert other['before'] is None and other['spread'] == 0 and not other['best']


def test_results_are_written(report, tmp_path):
    report.write_results(RECORDS, tmp_path, Console(quiet=True))
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].startswith('| digits | W2A2 | uniform | 1 | **88.00** |')
    assert '| 67% (96.7%) | 100% |' in lines[3]
    assert '0.5000' in lines[5]  # mAP is no percentage
    rows = list(csv.DictReader((tmp_path / 'runs.csv').open()))
    assert len(rows) == len(RECORDS)
    assert float(rows[2]['accuracy']) == 92.0 and rows[2]['seed'] == '1'
    assert rows[0]['bops_before'] == ''
    assert (tmp_path / 'accuracy.png').stat().st_size > 10_000


@pytest.mark.parametrize('set_', ['digits', 'shapes', 'fashion', 'stamps'])
def test_all_methods_search_over_the_same(quality, set_):
    """Candidates, quantizer, fixed layers and budget are those of configs/bpnas."""
    reference = None
    for method in quality.METHODS:
        if method == 'bpnas_paper':  # another float net, with fixed ends
            continue
        cfg = quality.search_config(quality.Run(set_, method, 'W2A2', 0))
        init_default_scope(cfg.default_scope)
        model = MODELS.build(
            dict(cfg.model, data_preprocessor=quality.preprocessor(cfg))
        )
        space = SearchSpace(model)
        found = dict(
            groups=[(g.name, g.layers, g.candidates) for g in space.groups],
            fixed=space.fixed,
            quantizer=cfg.model.quant.quantizer,
            budgets=cfg.custom_hooks[0]['budgets'],
            load_from=cfg.load_from,
            optimizer=cfg.optim_wrapper,
            epochs=cfg.train_cfg,
        )
        reference = reference or found
        assert found == reference
    assert reference['budgets'][0]['limit'] == 'W2A2'


def test_the_published_method_has_its_own_configs(quality):
    run = quality.Run('shapes', 'bpnas_paper', 'W2A2', 0)
    cfg = quality.search_config(run)
    assert cfg.custom_hooks[0].start == 'biased'
    assert cfg.model.quant.mixing == 'outputs'
    assert cfg.load_from == 'work_dirs/retinanet_shapes_reshaped_float/epoch_12.pth'


def test_budgets_and_inputs_of_a_set(quality):
    for budget, kind, limit in (
        ('0.8*W3A3', 'BOPs', dict(of='W3A3', ratio=0.8)),
        ('WeightBytes:W3A3', 'WeightBytes', 'W3A3'),
    ):
        run = quality.Run('fashion', 'edmips', budget, 0)
        cfg = quality.search_config(run)
        (found,) = cfg.custom_hooks[0].budgets
        assert found == dict(type=kind, limit=limit, input_shape=(1, 28, 28))
        cost = cfg.custom_hooks[0].penalties[0].cost
        assert tuple(cost.input_shape) == (1, 28, 28)
        assert not set(run.name) & set('*:/ ')


def test_a_float_net_for_each_seed(quality):
    given = 'work_dirs/x_float/epoch_2.pth'
    assert quality.float_net(given, 7, 1) == given
    assert quality.float_net(given, 7, 5) == 'work_dirs/x_float_2/epoch_2.pth'


def test_methods_differ_in_what_makes_them_up(quality):
    def parts(method):
        cfg = quality.search_config(quality.Run('digits', method, 'W3A3', 0))
        hook, quant = cfg.custom_hooks[0], cfg.model.quant
        penalties = [p['type'] for p in hook['penalties']]
        return quant.get('mixing'), penalties, hook.get('joint', False)

    barrier = ['BarrierPenalty', 'Prob1Regularizer']
    assert parts('bpnas_outputs') == ('outputs', barrier, False)
    assert parts('bpnas_composite') == ('composite', barrier, False)
    assert parts('edmips') == ('composite', ['ComplexityPenalty'], True)
    assert parts('dnas') == ('outputs', ['CostAwareLoss'], False)


@pytest.mark.parametrize('set_, epochs', [('digits', (20, 40)), ('shapes', (5, 11))])
def test_a_long_uniform_training_is_as_long_as_search_and_finetuning(
    quality, set_, epochs
):
    for method, expected in zip(('uniform', 'uniform_long'), epochs, strict=True):
        run = quality.Run(set_, method, 'W3A3', 0)
        cfg = quality.finetune_config(run, Path('policy.json'), 'float.pth')
        schedule = cfg.param_scheduler
        cosine = schedule[-1] if isinstance(schedule, list) else schedule
        lengths = cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval, cosine.T_max
        assert lengths == (expected,) * 3
        assert cfg.load_from == 'float.pth'


def test_a_finetuning_is_taken_over_from_its_like_alone(quality, tmp_path):
    mine = dict(set='digits', method='random', budget='W2A2', seed=0, epochs=20)
    other = mine | dict(
        method='uniform_long', epochs=40, accuracy=1, finetune_seconds=2
    )
    (tmp_path / 'a.json').write_text(json.dumps(other))
    assert quality.same_finetuning(mine, tmp_path) is None
    (tmp_path / 'b.json').write_text(json.dumps(other | dict(epochs=20, accuracy=3)))
    assert quality.same_finetuning(mine, tmp_path) == dict(
        accuracy=3, finetune_seconds=2
    )


def test_finished_runs_are_skipped_and_other_settings_refused(quality, tmp_path):
    words = ['--sets', 'digits', '--methods', 'bpnas_sampled', 'uniform']
    words += ['--budgets', 'W3A3']
    args = quality.parse_args([*words, '--work-dir', str(tmp_path)])
    (tmp_path / 'digits-bpnas_sampled-W3A3-1.json').write_text(json.dumps(RECORDS[1]))
    settings = RECORDS[0]['settings']
    names = [r.name for r in quality.missing_runs(args, settings)]
    assert len(names) == 5 and 'digits-bpnas_sampled-W3A3-1' not in names
    with pytest.raises(ValueError, match='other settings'):
        quality.missing_runs(args, dict(settings, from_float=True))


def test_two_do_not_run_in_one_folder(quality, tmp_path):
    folder = tmp_path / 'new'
    taken = pytest.raises(ValueError, match='--work-dir: another search_quality')
    with quality.alone_in(folder), taken, quality.alone_in(folder):
        pass
    with quality.alone_in(folder):
        pass


def test_lines_of_the_results_are_kept(quality, report, tmp_path):
    """From another machine, whose records are not here; records here come first."""
    work_dir, out = tmp_path / 'runs', tmp_path / 'out'
    work_dir.mkdir()
    out.mkdir()
    (out / 'runs.csv').write_text(report.table_csv(RECORDS))
    here = RECORDS[1] | dict(accuracy=93.0)
    (work_dir / 'digits-bpnas_sampled-W3A3-1.json').write_text(json.dumps(here))
    words = ['--sets', 'digits', '--budgets', 'W3A3', '--work-dir', str(work_dir)]
    words += ['--methods', 'bpnas_sampled', 'uniform', '--out', str(out)]
    alone, kept = quality.parse_args(words), quality.parse_args([*words, '--keep'])
    assert list(quality.all_records(alone).values()) == [here]
    expected = [here if r is RECORDS[1] else r for r in RECORDS]
    assert sorted(quality.all_records(kept).values(), key=str) == sorted(
        expected, key=str
    )
    settings = RECORDS[0]['settings']
    names = [r.name for r in quality.missing_runs(kept, settings)]
    assert names == ['digits-uniform-W3A3-1', 'digits-uniform-W3A3-2']
    with pytest.raises(ValueError, match='other settings'):
        quality.missing_runs(kept, dict(settings, from_float=True))
    (out / 'runs.csv').write_text('set,method\n')
    with pytest.raises(ValueError, match='no column budget, seed'):
        quality.all_records(kept)


def test_what_the_choice_before_the_solver_costs(quality, tmp_path):
    """Against the tables of the search itself."""
    cfg = quality.search_config(quality.Run('digits', 'bpnas_sampled', 'W3A3', 0))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, data_preprocessor=quality.preprocessor(cfg)))
    space = SearchSpace(model)
    sizes = space.sizes
    eight = [[float(j == m - 1) for j in range(m)] for m in sizes]  # all at 8/8
    header = dict(
        groups={
            g.name: dict(layers=g.layers, candidates=list(map(list, g.candidates)))
            for g in space.groups
        }
    )
    probs = dict(zip([g.name for g in space.groups], eight, strict=True))
    history = tmp_path / 'search_history.jsonl'
    history.write_text(json.dumps(header) + '\n' + json.dumps(dict(probs=probs)))
    policy = space.policy([0] * len(sizes))
    budget = dict(cost=1.0, limit=2.0, input_shape=[3, 16, 16])
    policy.meta['budgets'] = [budget]
    policy.save(tmp_path / 'policy.json')
    found = quality.costs(cfg, tmp_path / 'policy.json', history)
    layers = dict.fromkeys(policy.layers, Precision(8, 8))
    expected = quality.total_cost(
        quality.BOPs(), quality.profile(model, (3, 16, 16)), layers
    )
    assert found == dict(bops=1.0, limit=2.0, bops_before=expected)
    assert (
        quality.costs(cfg, tmp_path / 'policy.json', tmp_path / 'no')['bops_before']
        is None
    )


def test_help_says_what_differs(quality, capsys):
    with pytest.raises(SystemExit):
        quality.parse_args(['--help'])
    assert 'mixing' in capsys.readouterr().out


@pytest.mark.parametrize('sets', [['digits'], ['digits', 'shapes']])
def test_the_legend_lies_within_the_picture(report, sets):
    records = [
        record(method=method) | dict(set=name)
        for name in sets
        for method in report.METHODS
    ]
    fig = report.accuracy_figure(report.summarise(records), LIGHT)
    fig.canvas.draw()
    (legend,) = fig.legends
    box, whole = legend.get_window_extent(), fig.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
