"""The report page and its files."""

import base64
import json
import os
import re
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmmpq.engine import results
from mmmpq.policy import Policy, Precision
from mmmpq.visualization import write_report

ROOT = Path(__file__).parents[2]
FIGURES = ('bits', 'probabilities', 'cost', 'penalties')
ROWS = [
    dict(name='float', metric=0.583, bops=1.2e11, weight_bytes=32e6),
    dict(name='uniform W3A3', metric=0.541, bops=1.2e9, weight_bytes=3e6),
    dict(
        name='searched', metric=0.5605, bops=1.18e9, weight_bytes=3.2e6,
        expected_bops=1.1e9,
    ),
]  # fmt: skip


def write_search(work_dir, records=3, cost=1.18e9, costs=None):
    """A small search: a group of two layers, one of a single candidate, a stem."""
    layers = {'stem': (8, 8), 'a.0': (2, 4), 'a.1': (2, 4), 'head': (32, 32)}
    budget = dict(type='BOPs', limit=1.2e9, unit='BOPs')
    meta = dict(model='Tiny<Net>', input_shape=[3, 32, 32], seed=7)
    meta['budgets'] = [dict(budget, cost=cost)]
    meta.update({'costs': costs} if costs else {})
    precisions = {name: Precision(*bits) for name, bits in layers.items()}
    Policy(precisions, meta).save(work_dir / 'policy.json')
    groups = {
        'a': dict(layers=['a.0', 'a.1'], candidates=[[2, 4], [4, 4]]),
        'head': dict(layers=['head'], candidates=[[32, 32]]),
    }
    lines = [dict(groups=groups, budgets=[dict(budget, min=5e8, max=4.8e9)])]
    lines += [
        dict(
            iter=10 * i, epoch=i, loss=1 / i, penalties=dict(barrier=0.1 * i),
            expected=[1.1e9], realised=[1.0e9], bound=[2e9 / i],
            probs={'a': [0.75, 0.25], 'head': [1.0]},
        )
        for i in range(1, records + 1)
    ]  # fmt: skip
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (work_dir / 'search_history.jsonl').write_text(text)
    return work_dir


@pytest.fixture
def fast(monkeypatch):
    """Leave the drawing out where a test is about text."""
    png = b'\x89PNG' + b'\0' * 20
    monkeypatch.setattr('mmmpq.visualization.report.draw', lambda *args: png)


def cells(html):
    """Rows of the comparison table as lists of text."""
    table = html.split('What it costs')[1].split('</table>')[0].split('<tbody>')[1]
    return [
        [
            re.sub('<[^>]*>', ' ', cell).strip()
            for cell in re.findall('<td>(.*?)</td>', row)
        ]
        for row in table.split('</tr>')[:-1]
    ]


def test_page_is_self_contained_and_explains_itself(tmp_path):
    index = write_report(write_search(tmp_path))
    assert index == tmp_path / 'report' / 'index.html'
    html = index.read_text()
    for name in FIGURES:
        png = (index.parent / f'{name}.png').read_bytes()
        assert png.startswith(b'\x89PNG')
        assert base64.b64encode(png).decode() in html
        section = html.split(f'<section id="{name}">')[1]
        assert len(re.search('<p class="soft">(.*?)</p>', section)[1]) > 100
    assert 'prefers-color-scheme: dark' in html
    assert not re.search(r'<script|<link|(src|href|srcset)="(?!data:)', html)
    assert 'Tiny&lt;Net&gt;' in html
    assert '3 layers searched in 2 groups, 1 fixed' in html
    assert sorted(p.name for p in index.parent.iterdir()) == sorted(
        ['index.html', *(f'{name}.png' for name in FIGURES)]
    )


def test_table_with_rows(tmp_path, fast):
    html = write_report(write_search(tmp_path), ROWS).read_text()
    assert cells(html) == [
        ['float', '0.5830', '120 GBOPs', '1.0×', '32.0 MB', '1.0×'],
        ['uniform W3A3', '0.5410 −0.0420', '1.20 GBOPs', '100.0×', '3.00 MB', '10.7×'],
        [
            'searched', '0.5605 −0.0225', '1.18 GBOPs expected 1.10 GBOPs', '101.7×',
            '3.20 MB', '10.0×',
        ],
    ]  # fmt: skip


def test_table_from_meta(tmp_path, fast):
    costs = {
        'float': dict(bops=1.2e11, weight_bytes=32e6),
        'uniform': dict(name='W3A3', bops=1.2e9, weight_bytes=3e6),
        'searched': dict(bops=1.18e9, weight_bytes=3.2e6),
    }
    html = write_report(write_search(tmp_path, costs=costs)).read_text()
    rows = cells(html)
    assert [row[0] for row in rows] == ['float', 'uniform W3A3', 'searched']
    assert [row[1] for row in rows] == ['–'] * 3
    assert rows[2][2:] == ['1.18 GBOPs', '101.7×', '3.20 MB', '10.0×']


def test_table_from_budgets_alone(tmp_path, fast):
    html = write_report(write_search(tmp_path)).read_text()
    assert cells(html) == [['searched', '–', '1.18 GBOPs', '–', '–', '–']]


@pytest.mark.parametrize(
    ('cost', 'sentence'),
    [
        (1.18e9, 'budget good">✓ fits: 1.18 of 1.20 GBOPs (98.3 %)'),
        (1.25e9, 'budget bad">✗ exceeds: 1.25 of 1.20 GBOPs (104.2 %)'),
    ],
)
def test_budget_statement(tmp_path, cost, sentence, fast):
    html = write_report(write_search(tmp_path, cost=cost)).read_text()
    assert sentence in html
    assert 'expected cost at the last record 1.10 GBOPs' in html
    assert 'the candidates span 500 MBOPs to 4.80 GBOPs' in html


@pytest.mark.parametrize('records', [0, 1])
def test_search_that_just_began(tmp_path, records):
    html = write_report(write_search(tmp_path, records=records)).read_text()
    assert ('no record yet' in html) == (records == 0)
    assert all(f'<section id="{name}">' in html for name in FIGURES)


def test_out_dir_and_no_half_written_file(tmp_path, monkeypatch, fast):
    out = tmp_path / 'elsewhere'
    index = write_report(write_search(tmp_path), out_dir=out)
    assert index.parent == out
    before = index.read_text()

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_report(tmp_path, ROWS, out_dir=out)
    assert index.read_text() == before
    assert len(list(out.iterdir())) == 5


@pytest.mark.parametrize('name', ['policy.json', 'search_history.jsonl'])
def test_missing_file(tmp_path, name):
    (write_search(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} does not exist.*SearchHook'):
        write_report(tmp_path)


def test_damaged_policy(tmp_path):
    path = write_search(tmp_path) / 'policy.json'
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r'policy\.json'):
        write_report(tmp_path)


def test_files_of_two_searches(tmp_path):
    write_search(tmp_path)
    Policy({'stem': Precision(8, 8)}).save(tmp_path / 'policy.json')
    with pytest.raises(ValueError, match=r'different searches: .*a\.0, a\.1, head'):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ({'name': 'float'}, 'rows must be a list'),
        ([{'metric': 0.5}], r"rows\[0\] must be a dict with a 'name'"),
        ([{'name': 'x', 'weight_byte': 1}], 'near names: weight_bytes'),
        ([{'name': 'x', 'bops': '1 GBOPs'}], r"rows\[0\]\['bops'\] must be a number"),
        ([{'name': 'x', 'metric': float('nan')}], 'must be a number, found nan'),
    ],
)
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_report(write_search(tmp_path), rows)


def test_tool(tmp_path, monkeypatch, capsys, fast):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, args)])
        runpy.run_path(str(ROOT / 'tools' / 'report.py'), run_name='__main__')

    rows = write_search(tmp_path) / 'rows.json'
    rows.write_text(json.dumps(ROWS))
    run(tmp_path, '--rows', rows)
    assert '0.5605' in Path(capsys.readouterr().out.strip()).read_text()
    sizes = tmp_path / 'sizes.json'
    net = dict(float=400.0, packed=47)
    layer = dict(net, name='a.<0>', w_bits=2, weights=100)
    sizes.write_text(json.dumps(dict(layers=[layer], weights=net, rest=net, total=net)))
    run(tmp_path, '--sizes', sizes)
    html = Path(capsys.readouterr().out.strip()).read_text()
    assert '<td>a.&lt;0&gt;</td><td>2</td><td>400 B</td><td>47 B (8.5×)</td>' in html

    def refused(*args):
        with pytest.raises(SystemExit) as error:
            run(*args)
        assert error.value.code == 2
        return capsys.readouterr().err

    sizes.write_text('{}')
    assert 'sizes.json must be what tools/export' in refused(tmp_path, '--sizes', sizes)
    rows.write_text('[{')
    assert 'rows.json is not JSON' in refused(tmp_path, '--rows', rows)
    assert 'policy.json does not exist' in refused(tmp_path / 'nowhere')


def test_many_groups_are_a_heat_map_of_searchable_rows_in_a_small_file(tmp_path):
    count = 100
    names = [f'backbone.stages.{i // 9}.blocks.{i % 9}.attn.qkv' for i in range(count)]
    Policy(dict.fromkeys(names, Precision(4, 4)), {}).save(tmp_path / 'policy.json')
    candidates = [[2, 2], [3, 3], [4, 4], [8, 8]]
    groups = {name: dict(layers=[name], candidates=candidates) for name in names}
    random = np.random.default_rng(0)
    lines = [dict(groups=groups, budgets=[])]
    for i in range(200):
        probs = random.dirichlet(np.ones(4), count).tolist()
        row = dict(iter=i, loss=1.0, penalties={}, expected=[], realised=[])
        lines.append(dict(row, probs=dict(zip(names, probs, strict=True))))
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (tmp_path / 'search_history.jsonl').write_text(text)
    began = time.process_time()
    page = write_report(tmp_path)
    assert time.process_time() - began < 30  # 7 s; panels took 53
    assert page.stat().st_size < 3e6
    html = page.read_text()
    assert 'Expected bits over training' in html
    assert f'title="{names[42]}: {names[42]}">{names[42]}</span>' in html


def test_drawing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    drawn, clock = [], [0.0]

    def draw(runner):
        drawn.append(clock[0])
        clock[0] += 50  # seconds

    monkeypatch.setattr(results, 'draw', draw)
    monkeypatch.setattr(results.time, 'monotonic', lambda: clock[0])
    saved = SimpleNamespace(policy=lambda: Policy({'a': Precision(4, 4)}))
    preview, runner = results.Preview(), SimpleNamespace(work_dir=tmp_path)
    for now in (0, 400, 1049, 1050, 2000, 2101):
        clock[0] = now
        preview(runner, saved)
    clock[0] = 9000
    preview(runner, saved, last=True)
    assert drawn == [0, 1050, 2101]
