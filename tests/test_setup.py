import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmmpq.compat import TESTED
from mmmpq.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PINS = dict(
    line.split('==')
    for line in (ROOT / 'requirements.txt').read_text().splitlines()
    if '==' in line
)


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
    assert set(re.findall(r'^\[(\w+)\]', text, re.M)) == {'deploy', 'qfa', 'dev'}
    for line in text.split('[')[0].split():
        requirement = Requirement(line)
        assert PINS[requirement.name] in requirement.specifier, line


def test_tested_versions_are_the_pinned_ones():
    for name, tested in TESTED.items():
        assert f'{PINS[name]}.'.startswith(f'{tested}.'), name


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
    sources = {p.relative_to(ROOT) for p in (ROOT / 'mmmpq').rglob('*.py')}
    assert sources <= {p.relative_to(tmp_path) for p in tmp_path.rglob('*.py')}


def test_the_active_environment_is_used_as_it_is(tmp_path):
    (tmp_path / 'python').symlink_to(sys.executable)
    done = call(
        'tools/setup_env.sh',
        MMMPQ_ENV='active',
        MMMPQ_CACHE=str(tmp_path / 'cache'),
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
    )
    assert done.returncode == 0, done.stderr
    python = done.stdout.splitlines()[-1]
    assert Path(python).resolve() == Path(sys.executable).resolve()
    assert 'installing' not in done.stderr


def test_an_unusable_interpreter_is_named(tmp_path):
    done = call(
        'tools/setup_env.sh', MMMPQ_PYTHON='/no/python', MMMPQ_CACHE=str(tmp_path)
    )
    assert done.returncode == 1
    assert '/no/python' in done.stderr
    assert 'Traceback' not in done.stderr


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
