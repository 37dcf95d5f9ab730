"""What users get wrong, verb by verb: status 2 and one line that names key or file."""

import importlib
import re
import sys

import pytest
import torch

from mmmpq.engine import launch
from mmmpq.fileio import atomic_save

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='mmmpq.QuantModel', base_type='ImageClassifier', quant=dict({quant}),
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4,
                  num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=8))
custom_hooks = {hooks}
"""
SEARCH = "candidates=['W2A2', 'W4A4']"
CONFIGS = {  # name: (text, what is said of it)
    'syntax.py': ('model = dict(', 'syntax.py cannot be read: SyntaxError'),
    'name.py': ('x = y', "name.py cannot be read: NameError: name 'y'"),
    'base.py': ("_base_ = 'nowhere.py'", 'base.py cannot be read.*nowhere.py'),
    'json.json': ('{', 'json.json cannot be read'),
    'text.txt': ('x', 'text.txt cannot be read'),
    'empty.py': ('', 'empty.py: model: found None; accepted is a dict'),
    'five.py': ('model = 5', 'five.py: model: found 5; accepted is a dict'),
    'quant.py': (
        "model = dict(type='mmmpq.QuantModel', quant=3)",
        'quant.py: model.quant: found 3',
    ),
    'type.py': ('model = dict(a=1)', 'config: .*must contain the key "type"'),
    'key.py': (
        "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier', "
        "backbone=dict(type='ResNet', dpth=3))",
        "config: .*unexpected keyword argument 'dpth'",
    ),
}
HEAD = '{"format": "mmmpq-policy", "version": 1, "layers": '
JSON = {
    'deep.json': ('[' * 100_000, 'nested too deep'),
    'list.json': ('[1]', 'list.json'),
    'infinite.json': (HEAD + '{"a": Infinity}}', 'infinite.json.*found Infinity'),
    'twice.json': (HEAD + '{"a": [4, 4], "a": [2, 2]}}', "the key 'a' is there twice"),
    'dict.json': (HEAD + '{"a": {"b": 1}}}', 'dict.json'),
    'meta.json': (HEAD + '{"a": [4, 4]}, "meta": [3]}', 'meta.json'),
    'cut.json': (HEAD, 'cut.json'),
}
HISTORIES = {
    'nothing': '',
    'a number of groups': '{"groups": 5, "budgets": []}\n',
    'a number of budgets': '{"groups": {}, "budgets": 5}\n',
    'a group of numbers': '{"groups": {"a": 5}, "budgets": []}\n',
    'a number of layers': (
        '{"groups": {"a": {"layers": 5, "candidates": []}}, "budgets": []}\n'
    ),
    'a record of types': (
        '{"groups": {"a": {"layers": ["a"], "candidates": [[4, 4]]}}, "budgets": []}\n'
        '{"iter": 1, "loss": 1, "penalties": {}, "expected": [], "realised": [], '
        '"probs": {"a": 5}}\n{}'
    ),
    'deep': '[' * 100_000 + '\n{}',
}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Calls a verb in a folder of its own; its one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMMPQ_TRACEBACK', raising=False)

    def call(verb, *argv):
        monkeypatch.setattr(sys, 'argv', [verb, *map(str, argv)])
        with pytest.raises(SystemExit) as stopped:
            launch.run(importlib.import_module(f'mmmpq.cli.{verb}').main)
        assert stopped.value.code == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        assert len(lines) == 1
        return lines[0]

    return call


@pytest.fixture
def config(tmp_path):
    def write(quant=SEARCH, hooks='[]'):
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(quant=quant, hooks=hooks))
        return path

    return write


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('verb', ['cost', 'train', 'test', 'verify_integer', 'export'])
def test_configs(verb, name, said, tmp_path):
    text, message = CONFIGS[name]
    (tmp_path / name).write_text(text)
    atomic_save(dict(a=torch.ones(2)), tmp_path / 'x.pth')
    flags = [] if verb in ('cost', 'train') else ['x.pth']
    flags += ['--format', 'packed'] if verb == 'export' else []
    assert re.search(message, said(verb, name, *flags))


@pytest.mark.parametrize('name', JSON)
@pytest.mark.parametrize('kind', ['policy', 'hardware', 'latency'])
def test_json(kind, name, said, config, tmp_path):
    text, message = JSON[name]
    (tmp_path / name).write_text(text)
    if kind == 'latency':
        budget = dict(type='Latency', limit='3 ms', table=name)
        hook = dict(type='mmmpq.SearchHook', budgets=[budget])
        found = said('cost', config(hooks=repr([hook])))
    else:
        found = said('cost', config(), f'--{kind}', name)
    assert name in found and (kind != 'policy' or re.search(message, found))


@pytest.mark.parametrize('name', HISTORIES)
def test_histories(name, said, tmp_path):
    (tmp_path / 'policy.json').write_text(HEAD + '{"a": [4, 4]}, "meta": {}}')
    (tmp_path / 'search_history.jsonl').write_text(HISTORIES[name])
    assert 'search_history.jsonl, line' in said('report', tmp_path)


@pytest.mark.parametrize('verb', ['export', 'test', 'verify_integer'])
def test_a_folder_is_no_checkpoint(verb, said, config, tmp_path):
    flags = ['--format', 'packed'] if verb == 'export' else []
    path = config("policy='W4A4'")
    assert 'but a folder of this name' in said(verb, path, tmp_path, *flags)


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        ("type='mmmpq.SearchHook', heldout=0.5", "SearchHook: unknown key 'heldout'"),
        ("type='mmmpq.SearchHook', budgets=5", 'SearchHook.budgets: found 5'),
        ("type='mmmpq.CalibrationHook', batchez=5", 'near names: batches'),
        (
            "type='mmmpq.SearchHook', penalties=[dict(type='BarrierPenalty', mue=1)]",
            "BarrierPenalty: unknown key 'mue'",
        ),
    ],
)
def test_hooks(hook, message, said, config, monkeypatch):
    monkeypatch.setattr('mmengine.runner.Runner.train', lambda self: None)
    assert message in said('train', config(hooks=f'[dict({hook})]'))


@pytest.mark.parametrize(
    ('quant', 'message'),
    [
        (f'{SEARCH}, exclude=3', 'quant.exclude: found 3'),
        (f'{SEARCH}, groups=[[]]', r'quant.groups: found \[\]'),
        (f'{SEARCH}, exclud="a"', "quant: unknown key 'exclud'; near names: exclude"),
        (f"{SEARCH}, relaxation=dict(type='Softmax', temprature=1)", "'temprature'"),
        (f"{SEARCH}, quantizer=dict(type='LinearQuantizer', rnge=1)", "'rnge'"),
    ],
)
def test_quant(quant, message, said, config):
    assert re.search(message, said('cost', config(quant=quant)))
