"""The wheel: what is in it, and that it works away from the clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('mmmpq', 'configs', 'tools', 'pyproject.toml', 'setup.py', 'MANIFEST.in')
FINDER = 'mmmpq-mmcv-ext.pth'


def call(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, 'OMP_NUM_THREADS': '1', 'PIP_NO_INDEX': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'  # a build leaves files in the folder that it builds
    source.mkdir()
    for name in (*SOURCES, 'README.md', 'LICENSE', 'model-index.yml'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    flags = ['--no-deps', '--no-build-isolation', '--wheel-dir', folder]
    call(sys.executable, '-m', 'pip', 'wheel', *flags, source, cwd=folder)
    return next(folder.glob('mmmpq-*.whl'))


@pytest.fixture(scope='module')
def python(wheel):
    """An environment with the wheel; third-party packages come from this one's."""
    env = wheel.parent / 'env'
    call(sys.executable, '-m', 'venv', '--without-pip', env, cwd=wheel.parent)
    python = env / 'bin' / 'python'
    outer = [path for path in sys.path if path.endswith('-packages')]
    packages = next(env.glob('lib/python*/site-packages'))
    (packages / 'outer.pth').write_text('\n'.join(outer))
    call(python, '-m', 'pip', 'install', '--no-deps', wheel, cwd=wheel.parent)
    return python


def test_the_wheel_holds_package_data_configs_tools_and_finder(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(next(n for n in names if n.endswith('METADATA'))).decode()
    tracked = {
        path.relative_to(ROOT)
        for folder in ('mmmpq', 'configs', 'tools')
        for path in (ROOT / folder).rglob('*.*')
        if path.is_file() and path.suffix != '.pyc'
    }
    shipped = {Path(name.removeprefix('mmmpq/.mim/')) for name in names}
    assert tracked <= shipped
    assert {FINDER, 'mmmpq/.mim/model-index.yml'} <= names
    extras = set(re.findall('^Provides-Extra: (.*)', metadata, re.M))
    assert extras == {
        'openmmlab',
        'onedl',
        'segmentation',
        'onedl-segmentation',
        'deploy',
        'openvino',
        'qfa',
        'kernels',
        'dev',
    }
    always = re.findall(r'^Requires-Dist: ((?:(?!extra ==).)*)$', metadata, re.M)
    assert not [name for name in always if 'mm' in name or 'setuptools' in name]


def test_cost_search_and_export_run_away_from_the_clone(python, tmp_path):
    mim = next(python.parents[1].glob('lib/python*/site-packages/mmmpq/.mim'))
    config = mim / 'configs' / 'bpnas' / 'resnet_digits.py'

    def tool(name, *args):
        return call(python, mim / 'tools' / f'{name}.py', *args, cwd=tmp_path)

    tool('dataset_converters/digits')
    assert '108 MBOPs' in tool('cost', config)  # of W3A3, the config's budget
    few = [f'{split}_dataloader.dataset.indices=64' for split in ('train', 'val')]
    options = [*few, 'load_from=None', 'train_cfg.max_epochs=1']
    options.append('custom_hooks.0.measure=0')
    tool('train', config, '--work-dir', 'run', '--cfg-options', *options)
    checkpoint, policy = tmp_path / 'run/searched.pth', tmp_path / 'run/policy.json'
    finetune = config.with_name('resnet_digits_finetune.py')
    flags = ['--format', 'packed', '--out', 'net.safetensors']
    flags += ['--cfg-options', f'model.quant.policy={policy}']
    tool('export', finetune, checkpoint, *flags)
    packed = tmp_path / 'net.safetensors'
    assert packed.stat().st_size < checkpoint.stat().st_size / 4


def test_mmcv_has_its_operators_where_mmdet_is_imported_first(python, tmp_path):
    program = """
from mmdet.apis import init_detector
from mmcv.ops import nms
import sys, torch
boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]])
assert nms(boxes, torch.tensor([.5, .9, .7]), .5)[1].tolist() == [1, 2]
assert 'mmmpq' not in sys.modules
"""
    call(python, '-c', program, cwd=tmp_path)
