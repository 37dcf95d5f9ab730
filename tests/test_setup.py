import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmmpq.compat import TESTED
from mmmpq.version import __version__

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ('openmmlab', 'onedl')


def pins(name):
    """NAME==VERSION of a file in requirements/ and of those that it includes."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    found = dict(re.findall(r'^([\w-]+)==(\S+)', text, re.M))
    for included in re.findall(r'^-r (\w+)\.txt', text, re.M):
        found |= pins(included)
    return found


# The family that the tests run with.
try:
    INSTALLED = metadata.version('onedl-mmengine') and 'onedl'
except metadata.PackageNotFoundError:
    INSTALLED = 'openmmlab'
PINS = {family: pins(family) for family in FAMILIES}


def call(*command, **env):
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def test_setup_accepts_what_is_pinned(tmp_path):
    done = call(sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', tmp_path)
    assert done.returncode == 0, done.stderr
    info = tmp_path / 'mmmpq.egg-info'
    assert f'Version: {__version__}\n' in (info / 'PKG-INFO').read_text()
    text = (info / 'requires.txt').read_text()
    always, *extras = re.split(r'^\[([\w-]+)\]$', text, flags=re.M)
    extras = dict(zip(extras[::2], extras[1::2], strict=True))
    more = dict(openmmlab='segmentation', onedl='onedl-segmentation')
    others = {'deploy', 'openvino', 'qfa', 'kernels', 'dev'}
    assert set(extras) == {*FAMILIES, *more.values(), *others}
    for family in FAMILIES:
        for line in (always + extras[family] + extras[more[family]]).split():
            requirement = Requirement(line)
            assert PINS[family][requirement.name] in requirement.specifier, line


def test_tested_versions_are_the_pinned_ones():
    pinned = PINS['openmmlab'] | PINS['onedl']
    pinned['mmcv'] = pinned['mmcv-lite']  # MMMPQ_MMCV=compiled builds the same version
    for name, tested in TESTED.items():
        assert f'{pinned[name]}.'.startswith(f'{tested}.'), name


def test_the_families_share_all_pins_but_the_toolboxes():
    shared = pins('common')
    for family in FAMILIES:
        own = PINS[family].keys() - shared.keys() - {'opencv-python-headless'}
        assert len(own) == 5, own
        assert all(('onedl-' in name) == (family == 'onedl') for name in own)
    common = set((ROOT / 'requirements.txt').read_text().splitlines())
    assert '-r requirements/openmmlab.txt' in common


def test_the_build_ships_configs_tools_and_index(tmp_path):
    done = call(sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', tmp_path)
    assert done.returncode == 0, done.stderr
    mim = tmp_path / 'mmmpq' / '.mim'
    assert (mim / 'tools' / 'train.py').is_file()
    assert (mim / 'model-index.yml').is_file()
    built = {p.relative_to(mim) for p in mim.rglob('*.py')}
    for folder in ('configs', 'tools'):
        assert {p.relative_to(ROOT) for p in (ROOT / folder).rglob('*.py')} <= built
    assert not list(mim.rglob('__pycache__'))
    assert (tmp_path / 'mmmpq-mmcv-ext.pth').is_file()
    sources = {p.relative_to(ROOT) for p in (ROOT / 'mmmpq').rglob('*.py')}
    assert sources <= {p.relative_to(tmp_path) for p in tmp_path.rglob('*.py')}


def test_the_active_environment_is_used_as_it_is(tmp_path):
    (tmp_path / 'python').symlink_to(sys.executable)
    done = call(
        'tools/setup_env.sh',
        MMMPQ_ENV='active',
        MMMPQ_FAMILY='',
        MMMPQ_MMCV='',
        MMMPQ_CACHE=str(tmp_path / 'cache'),
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
    )
    assert done.returncode == 0, done.stderr
    python = done.stdout.splitlines()[-1]
    assert Path(python).resolve() == Path(sys.executable).resolve()
    assert 'installing' not in done.stderr


@pytest.mark.parametrize(
    ('setting', 'accepted'),
    [
        (dict(MMMPQ_PYTHON='/no/python'), 'Python 3.11 to 3.12'),
        (dict(MMMPQ_PYTHON='/no/python', MMMPQ_FAMILY='onedl'), 'Python 3.11 to 3.13'),
        (dict(MMMPQ_FAMILY='mmlab'), 'openmmlab and onedl'),
        (dict(MMMPQ_MMCV='full'), 'lite and compiled'),
        (dict(MMMPQ_ENV='Active'), 'accepted is active'),
        (dict(MMMPQ_PYTHON='/bin/true'), 'Python 3.11 to 3.12'),
    ],
)
def test_a_setting_that_is_not_accepted_is_one_sentence(tmp_path, setting, accepted):
    blank = dict(MMMPQ_ENV='', MMMPQ_FAMILY='', MMMPQ_MMCV='')
    env = {**blank, 'MMMPQ_CACHE': str(tmp_path), **setting}
    done = call('tools/setup_env.sh', **env)
    name, value = next(iter(setting.items()))
    assert done.returncode == 1
    assert done.stderr.startswith(f'[mmmpq] error: {name}={value}: ')
    assert accepted in done.stderr and done.stderr.count('\n') == 1
    assert not done.stdout


def test_a_cache_that_cannot_be_is_one_sentence(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    for cache in (file, file / 'below'):
        done = call('tools/setup_env.sh', MMMPQ_ENV='', MMMPQ_CACHE=str(cache))
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith(
            f'[mmmpq] error: MMMPQ_CACHE: the folder {cache} '
        )
        assert done.stderr.count('\n') == 1


@pytest.fixture
def own(tmp_path):
    """Runs the set-up with a `uv` that lends what this environment has, or fails."""
    uv = tmp_path / 'bin' / 'uv'
    uv.parent.mkdir()
    outer = [path for path in sys.path if path.endswith('-packages')]

    def own(works, **env):
        site = '"${4%/bin/python}"/lib/python*/site-packages'  # --python is the fourth
        lend = f'rm -r {site}/setuptools*; '  # venv's own, of another version
        lend += f"printf '%s\\n' {' '.join(outer)} >$(echo {site})/outer.pth"
        uv.write_text(f'#!/bin/bash\n{lend if works else "exit 1"}\n')
        uv.chmod(0o755)
        return call(
            'tools/setup_env.sh',
            MMMPQ_ENV='',
            MMMPQ_MMCV='',
            MMMPQ_FAMILY=INSTALLED,
            MMMPQ_PYTHON=sys.executable,
            MMMPQ_CACHE=str(tmp_path / 'cache'),
            PATH=f'{uv.parent}:{os.environ["PATH"]}',
            PIP_NO_INDEX='1',
            PIP_FIND_LINKS='',
            **env,
        )

    return own


def test_an_environment_that_is_not_whole_is_made_anew(own, tmp_path):
    done = own(works=True)
    assert done.returncode == 0, done.stderr
    python = Path(done.stdout.splitlines()[-1])
    stamp = python.parents[1] / '.ready'
    assert stamp.is_file()

    foreign = tmp_path / 'foreign'  # what is no part of the environment
    (foreign / 'numpy-1.0.dist-info').mkdir(parents=True)
    again = own(works=False, PYTHONPATH=str(foreign))
    assert (again.stdout, again.stderr) == (done.stdout, '')

    next(python.parents[1].glob('lib/python*/site-packages/mmmpq-*.pth')).unlink()
    failed = own(works=False)
    assert failed.returncode == 1 and not failed.stdout
    first, *_, last = failed.stderr.splitlines()
    assert 'is not whole: making it anew' in first
    assert last.startswith('[mmmpq] error: no package index can be reached')
    assert not stamp.exists()


@pytest.mark.parametrize('script', sorted(p.name for p in ROOT.glob('tools/*.sh')))
def test_scripts_are_valid_bash_and_executable(script):
    assert call('bash', '-n', f'tools/{script}').returncode == 0
    assert os.access(ROOT / 'tools' / script, os.X_OK)


@pytest.mark.parametrize(
    'script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test']
)
def test_a_script_without_arguments_says_what_it_needs(script):
    done = call(f'tools/{script}.sh')
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ') and 'CONFIG' in done.stderr


def test_containers_name_what_exists():
    devcontainer = ROOT / '.devcontainer' / 'devcontainer.json'
    build = json.loads(devcontainer.read_text())['build']
    dockerfile = devcontainer.parent / build['dockerfile']
    assert dockerfile.resolve() == ROOT / 'Dockerfile'
    text = dockerfile.read_text()
    for name in re.findall('^COPY (.*) /', text, re.M):
        assert (ROOT / name).exists()
    (included,) = re.findall(r'-r /tmp/(\S+)', text)
    assert (ROOT / included).is_file()
