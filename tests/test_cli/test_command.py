"""The command mmmpq: its verbs, their faces in tools/, and stages that run once."""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from rich.console import Console

from mmmpq import cli
from mmmpq.baselines.sensitivity import METRICS
from mmmpq.cli.flags import baseline, cost, export, qfa_search
from mmmpq.cli.run import finetune_config, main
from mmmpq.cli.stages import Stages, identity
from mmmpq.engine.subnet_evaluation import LOSS
from mmmpq.models.loading import AS_FLOAT
from mmmpq.subnets.predictor import PREDICTORS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('verb', cli.COMMANDS)
def test_every_verb_has_help_and_a_face(verb, capsys, monkeypatch):
    module = importlib.import_module(
        f'mmmpq.cli.{verb.replace("-", "_").replace(" ", ".")}'
    )
    monkeypatch.setattr('sys.argv', [f'mmmpq {verb}', '--help'])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert f'mmmpq {verb}' in capsys.readouterr().out
    place = 'dataset_converters/' if verb.startswith('data ') else ''
    name = verb.removeprefix('data ').replace('-', '_')
    face = (ROOT / f'tools/{place}{name}.py').read_text()
    assert f"command('{verb}')" in face and face.count('\n') <= 25


def test_unknown_verbs(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(['serach'])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "found 'serach'; accepted are run, train" in said and 'near: ' in said
    with pytest.raises(SystemExit):
        cli.main(['data', 'stamp'])
    assert 'near: data digits, data shapes' in capsys.readouterr().err


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """Makes stages whose processes only note what they were called with."""
    calls = []

    def ran(self, title, words):
        calls.append(words)
        if 'fails' in words:
            raise ValueError('it failed')
        return 1.0

    monkeypatch.setattr(Stages, '_run', ran)
    return lambda: Stages(tmp_path, Console(quiet=True)), calls


def test_a_stage_runs_once_and_again_if_anything_before_it_changed(stages, tmp_path):
    make, calls = stages
    config = tmp_path / 'x.py'
    for text, searched in (('a = 1', 2), ('a = 1', 2), ('a = 2', 4)):
        config.write_text(text)
        again = make()  # as a new process would
        first = again('search', 'train', config)
        again('test', 'test', 'y', after=[first])
        assert len(calls) == searched
    make()('test', 'data shapes', 'z')
    assert calls[-1] == ['data', 'shapes', 'z']


def test_a_training_that_was_killed_goes_on(stages):
    make, calls = stages
    for _ in range(2):
        with pytest.raises(ValueError, match='it failed'):
            make()('search', 'train', 'fails')
    make()('search', 'train', 'other')
    assert calls == [
        ['train', 'fails'],
        ['train', 'fails', '--resume'],
        ['train', 'other'],
    ]


def test_a_training_does_not_go_on_from_that_of_other_settings(stages, tmp_path):
    make, calls = stages
    folder = tmp_path / 'run'
    folder.mkdir()
    last = folder / 'last_checkpoint'
    make()('search', 'train', 'one', '--work-dir', folder)
    last.write_text('epoch_6.pth')
    make()('search', 'train', 'two', '--work-dir', folder)
    assert not last.exists() and '--resume' not in calls[-1]


def test_an_input_written_anew_is_another_one(tmp_path):
    path = tmp_path / 'float.pth'
    path.write_text('one')
    before = identity(path)
    assert identity(path) == before
    os.utime(path, ns=(1, 1))
    assert identity(path) != before
    assert identity('https://x.org/a.pth') == 'https://x.org/a.pth'


@pytest.mark.parametrize('jobs', [1, 2])
def test_where_a_stage_fails_no_other_begins(stages, jobs):
    make, calls = stages
    together = make()
    together.jobs = jobs
    begun = Event()

    def first():
        begun.wait(0 if jobs == 1 else 10)
        together('search', 'train', 'fails')

    def second():
        begun.set()
        while jobs == 2 and not together._failed:
            time.sleep(0.01)
        together('others', 'test', 'x')

    with pytest.raises(ValueError, match=r'^it failed$'):
        together.together(first, second)
    assert calls == [['train', 'fails']]


def test_damaged_notes_name_the_file(stages, tmp_path):
    make, _ = stages
    (tmp_path / 'stages.json').write_text('{"search": {"ke')
    with pytest.raises(ValueError, match=r'stages\.json is damaged.*remove it'):
        make()


def test_run_wants_the_config_of_a_search(tmp_path):
    path = tmp_path / 'net.py'
    path.write_text("model = dict(type='RetinaNet')")
    with pytest.raises(ValueError, match=r'^CONFIG: found no mmmpq\.SearchHook'):
        main([str(path), '--work-dir', str(tmp_path / 'run'), '--budget', 'W4A4'])


def test_the_fine_tuning_of_a_config_without_a_twin(tmp_path):
    """Its own schedule, and a calibration in the place of the search."""
    path = tmp_path / 'net.py'
    path.write_text(
        'train_cfg = dict(max_epochs=7)\n'
        "model = dict(type='mmmpq.QuantModel', quant=dict(candidates=['W2A2']))\n"
        "custom_hooks = [dict(type='EMAHook'), dict(type='mmmpq.SearchHook')]\n"
    )
    args = argparse.Namespace(config=str(path), finetune=None, cfg_options=None)
    cfg = finetune_config(args)
    assert [h.type for h in cfg.custom_hooks] == ['EMAHook', 'mmmpq.CalibrationHook']
    twin = tmp_path / 'net_finetune.py'
    twin.write_text(
        "_base_ = 'net.py'\ncustom_hooks = []\ntrain_cfg = dict(max_epochs=3)"
    )
    cfg = finetune_config(args)
    assert cfg.train_cfg.max_epochs == 3 and cfg.custom_hooks == []


HEAVY = 'torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'numpy', 'sklearn', 'rich'
LOOK = """
import sys
from mmmpq.cli import COMMANDS, command
for verb in COMMANDS:
    try:
        command(verb, ['--help'])
    except SystemExit as end:
        assert end.code == 0, verb
    print(f'{verb}:', *[name for name in HEAVY if name in sys.modules], file=sys.stderr)
"""


def test_help_imports_nothing_that_takes_long():
    code = LOOK.replace('HEAVY', repr(HEAVY))
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stderr.splitlines() == [f'{verb}:' for verb in cli.COMMANDS]
    assert '--no-vnni' in found.stdout


def test_what_flags_repeat_is_what_is_meant():
    """They import nothing heavy, so they say some names anew."""
    assert export.AS_FLOAT == AS_FLOAT
    assert ('best', *PREDICTORS) == qfa_search.PREDICTORS
    assert qfa_search.LOSS == LOSS
    args = baseline.parse_args(['c.py', '--method', 'sensitivity'])
    assert args.metric in METRICS
    for metric in METRICS:
        baseline.parse_args(['c', '--method', 'random', '--metric', metric])


def test_options_of_the_config_are_parsed_as_mmengine_does():
    words = ['--cfg-options', 'a.b=[1,2]', 'c=x', 'd=(3,4.5)']
    found = cost.parse_args(['c.py', *words]).cfg_options
    assert found == {'a.b': [1, 2], 'c': 'x', 'd': (3, 4.5)}
