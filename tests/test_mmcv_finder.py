"""``mmcv._ext`` is found where nobody else has it, and only there."""

import subprocess
import sys
from pathlib import Path

import pytest

import mmmpq
from mmmpq import mmcv_finder

ROOT = Path(mmmpq.__file__).resolve().parent
PTH = ROOT / 'mmcv_ext' / 'mmmpq-mmcv-ext.pth'
AT_START = f'import site; site.addsitedir({str(PTH.parent)!r}); '
BY_IMPORT = (
    'import importlib.util as u; '
    f's = u.spec_from_file_location("f", {str(ROOT / "mmcv_finder.py")!r}); '
    'm = u.module_from_spec(s); s.loader.exec_module(m); m.install(); '
)


def call(code, *folders):
    paths = [str(ROOT.parent), *map(str, folders)]
    return subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path[:0] = {paths[::-1]}; {code}'],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def fake(tmp_path):
    """An mmcv without operators."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    return tmp_path


@pytest.mark.parametrize('start', [AT_START, BY_IMPORT], ids=['at start', 'by import'])
def test_found_only_where_nobody_has_it(fake, start):
    code = (
        start
        + 'import mmcv, mmcv._ext as e; print(e.__name__, e.__file__, mmcv.__file__)'
    )
    done = call(code, fake)
    assert done.returncode == 0, done.stderr
    name, file, mmcv = done.stdout.split()
    assert name == 'mmcv._ext' and Path(mmcv).parent.parent == fake
    assert Path(file).samefile(ROOT / 'mmcv_ext' / '__init__.py')
    own = fake / 'mmcv' / '_ext.py'
    own.write_text('')
    done = call(code, fake)
    assert Path(done.stdout.split()[1]).samefile(own), done.stderr
    own.write_text('raise ImportError("undefined symbol")')  # of another torch
    assert 'undefined symbol' in call(code, fake).stderr


def test_nothing_else_is_answered(fake):
    done = call(AT_START + 'import mmcv._extra', fake)
    assert "No module named 'mmcv._extra'" in done.stderr
    for name in ('mmcv', 'mmcv.ops', '_ext', 'mmcv._ext.nms'):
        assert mmcv_finder.MmcvExtFinder.find_spec(name) is None


def test_without_mmmpq_it_is_not_found(fake):
    """A .pth file that outlives the package."""
    gone = 'sys.path[:] = [p for p in sys.path if not Path(p, "mmmpq").exists()]; '
    code = f'{AT_START}from pathlib import Path; {gone}import mmcv._ext'
    assert "No module named 'mmcv._ext'" in call(code, fake).stderr


def test_a_folder_of_that_name_is_not_the_package(fake):
    """Such as the parent of a clone, where it is the first on the path."""
    (fake / 'mmmpq').mkdir()
    gone = (
        'sys.path[:] = [p for p in sys.path if not Path(p, "mmmpq/costs").exists()]; '
    )
    code = f'{AT_START}from pathlib import Path; {gone}import mmcv._ext'
    assert "No module named 'mmcv._ext'" in call(code, fake).stderr


def test_the_start_imports_nothing():
    code = 'before = set(sys.modules); ' + AT_START.replace('import site; ', '')
    done = call(f'import site; {code} print(sorted(set(sys.modules) - before))')
    assert done.stdout.strip() == '[]', done.stderr


def test_installed_once(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    for _ in range(2):
        mmcv_finder.install()
        exec(PTH.read_text())  # Python may read a folder of packages twice
    names = [getattr(f, '__name__', '') for f in sys.meta_path]
    assert names.count('MmcvExtFinder') == 1


@pytest.mark.parametrize(
    'first',
    [
        'from mmdet.apis import DetInferencer, init_detector',
        'from mmpretrain.apis import ImageClassificationInferencer',
    ],
)
def test_the_toolbox_may_be_imported_first(first):
    code = AT_START + first + '; import mmmpq, mmcv.ops; print("fine")'
    done = call(code)
    assert done.stdout.strip().endswith('fine'), done.stderr


def test_a_torchvision_of_another_torch_is_one_sentence(fake):
    (fake / 'torchvision.py').write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    done = call(AT_START + 'import mmcv._ext', fake)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('ImportError: ') and 'as a pair' in line
    assert 'torchvision::nms' in line
