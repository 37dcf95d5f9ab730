"""benchmarks/gpu.sh: a dry run of all stages, and stages that go wrong."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import mmmpq  # noqa: F401  a forked stage has it

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'benchmarks'


def script(*args, **env):
    return subprocess.run(
        ['bash', str(FOLDER / 'gpu.sh'), *map(str, args)],
        env=dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **env),
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def dry_run(tmp_path_factory):
    """Folder of a dry run and what it said."""
    out = tmp_path_factory.mktemp('gpu')
    done = script('--device', 'cpu', '--tiny', '--out', out, WHEELS=str(out / 'none'))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out, done.stdout


@pytest.fixture
def records(dry_run):
    def of(file):
        stages = json.loads((dry_run[0] / f'{file}.json').read_text())
        assert 'torch' in stages.pop('machine')
        assert {stage['status'] for stage in stages.values()} == {'ok'}
        found = [row for stage in stages.values() for row in stage['records']]
        return [row for row in found if 'skipped' not in row]

    return of


def test_every_stage_is_run_and_told_of(dry_run):
    out, said = dry_run
    names = [p.name for p in out.iterdir()]
    assert len(names) <= 8 and not any(p.is_dir() for p in out.iterdir())
    summary = (out / 'summary.md').read_text()
    sys.path.insert(0, str(FOLDER))
    try:
        import gpu
    finally:
        sys.path.remove(str(FOLDER))
    listed = (FOLDER / 'README.md').read_text()
    for stage in gpu.STAGES:
        assert f'| `{stage.name}` | {stage.limit} | `{stage.file}.json` |' in listed
        assert f'| {stage.name} | ok |' in summary
        assert f'\n{stage.name}, at most ' in said
        assert f'{stage.file}.json' in names
    assert '## step' in summary and '| torch' not in summary


def test_triton_is_compared_for_every_family(records):
    rows = records('correct')
    assert all(row['ok'] and row['kernels'] == 'triton' for row in rows)
    families = {row['family'] for row in rows}
    assert len(families) == 10  # with the function alone, and many weights at once
    assert all(row.get('repeats') for row in rows)
    assert {row['dtype'] for row in rows} == {'float32', 'bfloat16', 'float16'}
    assert {row.get('gradient', '') for row in rows} == {'', 'lsq', 'clip', 'identity'}


def test_steps_are_timed(records):
    rows = {
        (r['model'], r['variant'], r['step']): r for r in records('step') if 'ms' in r
    }
    for model in ('resnet18', 'retinanet_shapes', 'mobilenet_v2'):
        float_ = rows[model, 'float', 'weight']
        for key in (
            ('W4A4', 'weight'),
            ('composite', 'weight'),
            ('composite', 'iteration'),
        ):
            assert rows[(model, *key)]['time_ratio'] > 0
        assert rows[model, 'composite', 'iteration']['ms'] > float_['ms']
    assert ('resnet18', 'float, compiled', 'weight') in rows


def test_searches_end_and_resume(records):
    resumed, shapes = sorted(records('search'), key=lambda row: row['set'])
    assert resumed['run'] == 'AMP, EMA, resumed-deterministic'
    assert resumed['weights_differ_by'] == 0
    assert 0 < resumed['spent'] <= 1
    assert shapes['distance'] >= 0 and shapes['spread'] > 0
    (distributed,) = records('distributed')
    assert distributed['ranks'] == 2 and distributed['iterations'] > 0


def test_what_an_iteration_takes_beside_its_passes(records):
    (row,) = records('overhead')
    names = ('data', 'forward', 'backward', 'optimizer', 'other')
    total = sum(row[f'{name}_ms'] for name in names)
    assert row['other_share'] == pytest.approx(row['other_ms'] / total, abs=1e-3)
    assert 0 < row['of_other']['ops'] < row['of_iteration']['ops'] / 2
    assert row['top_host']


def test_kernels_are_timed(records):
    rows = records('bandwidth')
    assert {'forward_floor', 'copy_gb_s'} <= set(rows[-1])
    assert {'forward_us', 'forward_launches'} <= set(rows[0])


def test_wheels_are_unpacked_and_removed(tmp_path):
    wheel = tmp_path / 'carried-1.0-py3-none-any.whl'
    with zipfile.ZipFile(wheel, 'w') as file:
        # Python imports this one at its start, from whatever is on the path.
        file.writestr('sitecustomize.py', 'print(f"carried by {__file__}")')
        info = 'carried-1.0.dist-info'
        about = 'Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n'
        file.writestr(f'{info}/METADATA', about)
        kind = 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        file.writestr(f'{info}/WHEEL', kind)
        file.writestr(f'{info}/RECORD', '')
    done = script('--help', WHEELS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert 'usage: benchmarks/gpu.sh' in done.stdout
    (line,) = [n for n in done.stdout.splitlines() if n.startswith('carried by')]
    assert not Path(line.split()[-1]).parent.exists()


STAGES = """
import time

def wrong(records, settings):
    records.add(name='one', ok=True)
    records.add(name='two', ok=False)

def broken(records, settings):
    records.add(name='one')
    raise ValueError('no such thing')

def slow(records, settings):
    records.add(name='one')
    time.sleep(60)
"""


@pytest.mark.parametrize(
    'kind, status',
    [
        ('wrong', 'failed: 1 of 2 records'),
        ('broken', 'failed: exit status 1'),
        ('slow', 'out of time after 4 s'),
    ],
)
def test_a_stage_that_goes_wrong(kind, status, tmp_path, monkeypatch):
    """What it found until then is kept, and the next one would be begun."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'made_up_stages.py').write_text(STAGES)
    monkeypatch.delitem(sys.modules, 'made_up_stages', raising=False)
    import gpu
    from gpu_records import Settings, read

    stage = gpu.Stage(kind, 'found', 4, 'made_up_stages', kind)
    began = time.time()
    settings = Settings('cpu', True, tmp_path)
    result = gpu.run_stage(stage, settings, tmp_path, stage.limit, {})
    assert time.time() - began < 30
    assert result['status'] == status
    found = read(tmp_path / 'found.json')[kind]
    assert found['records'][0]['name'] == 'one'
    if kind == 'broken':
        assert found['log'][-1] == 'ValueError: no such thing'


def test_a_policy_far_from_those_of_the_cpu_is_no_match(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import gpu_search

    reference = [
        dict(policy=dict(a='W2A2', b=b), metric=metric)
        for b, metric in (('W4A4', 90.0), ('W4A3', 91.0), ('W3A3', 92.0))
    ]
    near = dict(policy=dict(a='W2A2', b='W3A4'), metric=89.0, ok=True)
    found = gpu_search.compare(near, reference)
    # (1 + 2 + 1) / 3 bits of four, and at most 2 of four between the others
    assert found == dict(distance=0.333, spread=0.5, cpu_metric=91.0, ok=True)
    far = dict(near, policy=dict(a='W4A4', b='W4A4'))
    assert not gpu_search.compare(far, reference)['ok']
    assert not gpu_search.compare(dict(near, metric=85.9), reference)['ok']
    assert not gpu_search.compare(dict(near, ok=False), reference)['ok']
