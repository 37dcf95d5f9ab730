"""What users get wrong, verb by verb: status 2 and one line that names key or file."""

import importlib
import os
import re
import shutil
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mmmpq.engine import launch
from mmmpq.fileio import atomic_save

CONFIG = """
default_scope = 'mmpretrain'
data = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', ann_file='labels.txt', data_prefix='images',
                 pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
train_dataloader = val_dataloader = test_dataloader = data
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
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
FIXED = "policy='W4A4'"
HOOK = "[dict(type='mmmpq.SearchHook', budgets=['W3A3'])]"


class Evil:
    def __reduce__(self):
        return os.system, ('touch executed',)


CHECKPOINTS: dict[str, tuple[Any, str]] = {  # name: (what it holds, what is said)
    'none.pth': (None, 'found no file none.pth'),
    'text.pth': ('a text', 'text.pth is damaged'),
    'empty.pth': ('', 'empty.pth is damaged'),
    'cut.pth': (bytes(1000), 'cut.pth is damaged'),
    'evil.pth': (Evil, 'evil.pth asks for .*system'),
    'list.pth': ([3], 'list.pth holds list'),
    'number.pth': (3, 'number.pth holds int'),
    'names.pth': ({1: torch.ones(1)}, 'names.pth holds dict'),
    'state.pth': (dict(state_dict=3), 'state.pth holds int'),
    'meta.pth': (dict(state_dict={}, meta=3), 'meta.pth holds'),
    'nothing.pth': (dict(state_dict={}), 'nothing.pth'),
    'other.pth': (dict(a=torch.ones(2)), 'other.pth'),
    'shapes.pth': ({'backbone.conv1.weight': torch.ones(2)}, 'shapes.pth'),
    'values.pth': ({'backbone.conv1.weight': 'x'}, 'values.pth'),
    'folder': (None, 'a folder of this name'),
    'text.safetensors': ('a text', 'text.safetensors'),
    'empty.safetensors': ('', 'empty.safetensors'),
    'cut.safetensors': (b'\xff' * 64, 'cut.safetensors'),
}
TRAINED = ('none.pth', 'text.pth', 'evil.pth', 'other.pth', 'shapes.pth', 'meta.pth')
LOADING = {  # a verb with a checkpoint in the place of {}
    'export': 'net.py {} --format packed --out out.safetensors',
    'test': 'net.py {}',
    'verify_integer': 'net.py {}',
    'train': 'search.py --cfg-options load_from={}',
    'train ': 'search.py --resume {}',
}
COMMANDS = {  # a command line: what is said
    # of configs, files and folders
    **{
        f'{verb} {argv}': said
        for verb, flags in (
            ('cost', ''), ('train', ''), ('test', ' x.pth'), ('run', ''),
            ('export', ' x.pth --format onnx'), ('verify_integer', ' x.pth'),
            ('baseline', ' --method uniform'), ('qfa_search', ' x.pth --budget W4A4'),
            ('profile_latency', ''), ('test_onnx', ' net.onnx'),
        )
        for argv, said in (
            (f'none.py{flags}', 'found no file none.py'),
            (f'nett.py{flags}', 'near names there: net.py'),
            (f'folder{flags}', 'a folder of this name'),
            (f'mmdet::none/none.py{flags}', "found 'mmdet::none/none.py'"),
            (f'file/net.py{flags}', 'found no file file/net.py'),
        )
    },
    **{
        f'{verb} {argv}': said
        for verb in ('cost search.py', 'train search.py', 'run search.py')
        for argv, said in (
            ('--cfg-options model', '--cfg-options'),
            ('--cfg-options model=3', 'model: found 3'),
            ('--cfg-options model.quant=x', "model.quant: found 'x'"),
        )
    },
    # of flags
    **dict.fromkeys(
        [
            'export net.py x.pth', 'export net.py x.pth --format tflite',
            'export net.py x.pth --format onnx --opset x',
            'export net.py x.pth --format packed --end-to-end',
            'export net.py x.pth --format onnx --no-normalize',
            'export net.py x.pth --end-to-end --out x.bin',
            'export net.py x.pth --format onnx --containers 4bit',
            'export net.py x.pth --format onnx --out x.bin',
            'export net.py x.pth --format onnx --input-shape 3 0 8',
            'export net.py x.pth --format onnx --input-shape 3 8', 'export net.py',
            'test net.py x.pth --out x.txt', 'test net.py', 'test',
            'test net.py x.pth --out x.pkl --out-item all',
            'test net.py x.pth --launcher mpirun', 'train', 'train search.py --seed x',
            'train search.py --launcher horovod', 'train search.py --sede 1',
            'verify_integer net.py x.pth --batches 0',
            'verify_integer net.py x.pth --batches x',
            'verify_integer net.py x.pth --tolerance x', 'verify_integer net.py',
            'profile_latency net.py --repeats 1', 'profile_latency net.py --threads 0',
            'profile_latency net.py --warmup -1', 'profile_latency',
            'profile_latency net.py --runtime tensorrt', 'test_onnx net.py',
            'test_onnx net.py net.onnx --yardstick', 'report', 'report a b', 'run',
            'test_onnx net.py net.onnx --threads x', 'run search.py --compare random1',
            'run search.py --jobs 0', 'run search.py --seed x',
            'run search.py --budget', 'pareto', 'pareto folder', 'baseline',
            'baseline search.py', 'baseline search.py --method best',
            'baseline search.py --method uniform --batches 0',
            'baseline search.py --method sensitivity --metric mAP',
            'baseline search.py --method hessian --vectors -1',
            'baseline search.py --method hessian --tolerance x', 'qfa_search net.py',
            'qfa_search net.py x.pth --budget W4A4 --samples 0',
            'qfa_search net.py x.pth --budget W4A4 --measure acc',
            'qfa_search net.py x.pth --budget W4A4 --predictor tree',
            'qfa_search net.py x.pth --budget W4A4 --rounds x',
            'qfa_search net.py x.pth --budget W4A4 --input-shape 3 8 0',
            'cost', 'cost net.py --input-shape 3', 'cost net.py --proposals x',
            'cost net.py --jsn',
        ],
        'error: ',
    ),
    'cost search.py --policy W9A4': '9 bits',
    'cost search.py --policy W4': "found 'W4'",
    'cost search.py --policy none.json': 'found no file none.json',
    'cost search.py --policy folder': 'folder',
    'cost search.py --policy net.py': 'net.py',
    'cost search.py --hardware none.json': 'none.json',
    'cost search.py --hardware folder': 'folder',
    'cost search.py --hardware net.py': 'net.py',
    'cost search.py --input-shape 3 0 16': 'input_shape',
    'cost search.py --input-shape 3 -8 16': 'input_shape',
    'cost search.py --proposals 0': 'proposals',
    'cost search.py --proposals -3': 'proposals',
    'export net.py x.pth --format packed --out folder/a.safetensors/b.safetensors': (
        'x.pth'
    ),
    'export net.py x.pth --format packed --out file/a.safetensors': 'file is a file',
    'export net.py x.pth --format packed --out folder.safetensors': 'is a folder',
    'export net.py x.pth --format packed --out x.safetensors --opset 3': 'x.pth',
    'export search.py other.pth --format packed --out a.safetensors': 'candidates of',
    'test search.py other.pth': 'other.pth',
    'report none': 'none',
    'report folder': 'folder',
    'report file': 'file',
    'report found --rows none.json': 'none.json',
    'report found --rows folder': 'folder',
    'report found --rows rows.json': 'rows.json',
    'report found --sizes none.json': 'none.json',
    'report found --sizes rows.json': 'rows.json',
    'report found --out-dir file': 'file',
    'report found --out-dir file/a': 'file',
    'pareto none --budgets W4A4': 'none',
    'pareto folder --budgets W4A4': 'folder',
    'pareto file --budgets W4A4': 'file',
    'pareto found --budgets W4A4': 'found',
    'pareto found --config search.py --budgets W4A4': 'another search space',
    'pareto found --config search.py --budgets W4A4 --checkpoint none.pth': 'none.pth',
    'pareto found --config search.py --budgets W4A4 --out file': 'file',
    'baseline search.py --method uniform --budget x': "'x'",
    'baseline search.py --method uniform --budget 0*W4A4': 'ratio',
    'baseline search.py --method uniform --budget 3GB --work-dir file': 'file',
    'baseline net.py --method sensitivity --budget W3A3': 'load_from',
    'baseline net.py --method uniform --budget W3A3': 'candidates|search',
    'baseline search.py --method uniform --budget 1BOPs': 'cannot be met|no uniform',
    'qfa_search search.py other.pth --budget W3A3': 'other.pth',
    'qfa_search net.py x.pth --budget W3A3': 'x.pth',
    'test_onnx net.py none.onnx': 'none.onnx',
    'test_onnx net.py folder': 'folder',
    'test_onnx net.py text.onnx': 'text.onnx',
    'test_onnx net.py net.onnx --out file/a.json': 'file',
    'profile_latency net.py --end-to-end none.onnx': 'none.onnx',
    'profile_latency net.py --end-to-end text.onnx': 'text.onnx',
    'profile_latency net.py --end-to-end folder': 'folder',
    'profile_latency net.py --out folder': 'folder',
    'profile_latency net.py --input-shape 3 0 8': 'input_shape',
    'run net.py': 'no SearchHook',
    'run search.py': 'load_from',
    'run search.py --cfg-options load_from=none.pth': 'none.pth',
    'run search.py --budget x --cfg-options load_from=x.pth': "'x'",
    'run search.py --budget 1BOPz --cfg-options load_from=x.pth': '1BOPz',
    'run search.py --finetune none.py': 'none.py',
    'run search.py --work-dir file --cfg-options load_from=x.pth': 'file',
    'train search.py --work-dir file': 'file',
    'train search.py --work-dir file/a': 'file',
    'train search.py --auto-scale-lr': '--auto-scale-lr',
    'train search.py --cfg-options train_cfg.max_epochs=x': 'max_epochs|train_cfg',
    'train search.py --cfg-options optim_wrapper.optimizer.type=Sdg': 'Sdg',
    'train search.py --cfg-options optim_wrapper.optimizer.lrr=1': 'lrr',
    'train search.py --cfg-options train_dataloader.dataset.ann_file=no.txt': 'no.txt',
    'train search.py --cfg-options model.base_type=ImageClasifier': 'ImageClassifier',
    'train search.py --cfg-options model.backbone.type=ResNett': 'ResNett',
    'train search.py --cfg-options model.quant.candidates=W4A4': 'candidates',
}  # fmt: skip
HISTORY = (
    '{"groups": {"a": {"layers": ["a"], "candidates": [[4, 4]]}}, "budgets": []}\n'
    '{"iter": 1, "loss": 1, "penalties": {}, "expected": [], "realised": [], '
    '"probs": {"a": [1.0]}}\n'
)
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
    monkeypatch.setattr('mmengine.runner.Runner._log_env', lambda *_: None)  # slow

    def call(verb, *argv):
        monkeypatch.setattr(sys, 'argv', [verb, *map(str, argv)])
        with pytest.raises(SystemExit) as stopped:
            launch.run(importlib.import_module(f'mmmpq.cli.{verb}').main)
        assert stopped.value.code == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if 'error: ' in x]
        assert len(lines) == 1
        return lines[0]

    return call


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with what ``COMMANDS`` name."""
    folder = tmp_path_factory.mktemp('prepared')
    for name in ('images', 'folder', 'folder.safetensors', 'found'):
        (folder / name).mkdir()
    for i in range(4):
        image = np.full((16, 16, 3), 40 * i, np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)
    (folder / 'labels.txt').write_text(''.join(f'{i}.png {i % 2}\n' for i in range(4)))
    (folder / 'net.py').write_text(CONFIG.format(quant=FIXED, hooks='[]'))
    (folder / 'search.py').write_text(CONFIG.format(quant=SEARCH, hooks=HOOK))
    for name in ('file', 'net.onnx', 'text.onnx'):
        (folder / name).write_text('a text')
    (folder / 'rows.json').write_text('[3]')
    (folder / 'found' / 'policy.json').write_text(HEAD + '{"a": [4, 4]}, "meta": {}}')
    (folder / 'found' / 'search_history.jsonl').write_text(HISTORY)
    for name, (content, _) in CHECKPOINTS.items():
        if isinstance(content, (str, bytes)):
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        elif content is not None:
            torch.save(content() if content is Evil else content, folder / name)
    shutil.copy(folder / 'other.pth', folder / 'x.pth')
    return folder


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


@pytest.mark.parametrize('line', COMMANDS)
def test_commands(line, said, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    before = sorted(prepared.rglob('*'))
    verb, *argv = line.split()
    assert re.search(COMMANDS[line], said(verb, *argv))
    new = set(prepared.rglob('*')) - {*before}
    assert [p for p in new if p.is_file() and p.suffix not in ('.log', '.py')] == []


@pytest.mark.parametrize(
    ('verb', 'name'),
    [
        (verb, name)
        for verb in LOADING
        for name in CHECKPOINTS
        if not verb.startswith('train') or name in TRAINED  # a Runner each
    ],
)
def test_checkpoints(verb, name, said, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    argv = LOADING[verb].format(name).split()
    assert re.search(CHECKPOINTS[name][1], said(verb.strip(), *argv))
    assert not (prepared / 'executed').exists()
    assert not (prepared / 'out.safetensors').exists()


@pytest.mark.parametrize('name', HISTORIES)
def test_histories(name, said, tmp_path):
    (tmp_path / 'policy.json').write_text(HEAD + '{"a": [4, 4]}, "meta": {}}')
    (tmp_path / 'search_history.jsonl').write_text(HISTORIES[name])
    assert 'search_history.jsonl, line' in said('report', tmp_path)


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
