import io
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint
from mmengine.utils import get_installed_path

import mmmpq
from mmmpq import compat

needs_weights_only = pytest.mark.skipif(
    compat._release(torch.__version__) < (2, 6), reason='torch loads everything'
)


@pytest.fixture(autouse=True)
def registered():
    compat.register_safe_globals()


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, mode='tensor'):
        return dict(loss=self.linear(torch.stack(x)).square().mean())


def checkpoint(folder):
    """What a real Runner saves after three iterations."""
    runner = Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[dict(x=torch.ones(2))] * 3,
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=folder.name,
        log_level='ERROR',
    )
    runner.message_hub.update_scalar('train/from_numpy', np.float64(0.5))
    runner.train()
    return folder / 'epoch_1.pth'


@needs_weights_only
def test_a_runner_checkpoint_loads_with_weights_only(tmp_path):
    path = checkpoint(tmp_path)
    loaded = torch.load(path, weights_only=True)
    history = loaded['message_hub']['log_scalars']['train/loss']
    plain = torch.load(path, weights_only=False)
    expected = plain['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert len(history.data[0]) == 3
    np.testing.assert_array_equal(history.data[0], expected.data[0])
    assert history.statistics('mean') == expected.mean()


@needs_weights_only
@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_arrays_load_under_the_names_of_numpy_1_and_2(core):
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    buffer = io.BytesIO()
    torch.save([array, np.float32(1.5)], buffer, _use_new_zipfile_serialization=False)
    own = np.core if not hasattr(np, '_core') else np._core
    data = buffer.getvalue().replace(
        f'{own.__name__}.multiarray'.encode(), f'{core}.multiarray'.encode()
    )
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    np.testing.assert_array_equal(loaded[0], array)
    assert loaded[1] == 1.5


class Attack:
    """Pickles as the call ``getattr(target, name)``."""

    def __init__(self, target, name):
        self.call = getattr, (target, name)

    def __reduce__(self):
        return self.call


@needs_weights_only
@pytest.mark.parametrize(
    'target, name',
    [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (torch.Tensor, 'max')],
)
def test_getattr_on_anything_else_is_refused(target, name):
    buffer = io.BytesIO()
    torch.save(Attack(target, name), buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(buffer, weights_only=True)


def test_safe_getattr():
    assert compat.safe_getattr(HistoryBuffer, 'mean') is HistoryBuffer.mean
    for target, name in [
        (HistoryBuffer, 'register_statistics'),
        (HistoryBuffer, '__class__'),
        (HistoryBuffer(), 'mean'),
        (io, 'open'),
    ]:
        with pytest.raises(pickle.UnpicklingError, match='only min, max, current'):
            compat.safe_getattr(target, name)


@needs_weights_only
def test_code_and_object_arrays_are_still_refused():
    for harmful in (np.array([Toy], dtype=object), Toy(), print):
        buffer = io.BytesIO()
        torch.save(harmful, buffer)
        buffer.seek(0)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(buffer, weights_only=True)


@needs_weights_only
def test_mmengine_loads_as_safely_and_leaves_what_is_allowed(tmp_path):
    path = checkpoint(tmp_path)
    torch.save(Attack(np.ndarray, 'tofile'), tmp_path / 'attack.pth')
    for _ in range(2):
        loaded = load_checkpoint(Toy(), str(path))
        assert isinstance(
            loaded['message_hub']['log_scalars']['train/loss'], HistoryBuffer
        )
        with pytest.raises(ValueError, match=r'attack\.pth asks for getattr.*tofile'):
            load_checkpoint(Toy(), str(tmp_path / 'attack.pth'))
    torch.load(path, weights_only=True)


# --- what is missing, untested or mixed -----------------------------------------------

OPENMMLAB = dict(mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmpretrain='1.2.0')
OPENMMLAB['mmsegmentation'] = '1.2.2'
ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmsegmentation': '1.4.2',
}
EITHER = "pip install 'mmmpq[openmmlab]' or pip install 'mmmpq[onedl]'"


@pytest.fixture
def installed(monkeypatch):
    """Distribution -> version, in place of what is really installed."""
    versions = {}

    def version(name):
        if name in versions:
            return versions[name]
        raise compat.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat.metadata, 'version', version)
    return versions


@pytest.fixture
def hide(monkeypatch):
    """Packages that are hidden from a search for them."""
    names = []
    find = compat.find_spec
    monkeypatch.setattr(
        compat, 'find_spec', lambda name: None if name in names else find(name)
    )
    return names


@pytest.mark.parametrize(
    'absent, versions, sentence',
    [
        (['torch'], {}, 'needs torch: pip install torch torchvision'),
        (['mmengine', 'mmcv'], {}, f'needs mmengine and mmcv: {EITHER}'),
        (
            ['mmcv'],
            {'mmengine': '0.10.7', 'mmdet': '3.3.0'},
            "needs mmcv: pip install 'mmmpq[openmmlab]'",
        ),
        (
            ['mmcv'],
            {'onedl-mmengine': '0.10.12'},
            "needs mmcv: pip install 'mmmpq[onedl]'",
        ),
        (  # mmcv-lite was laid over the fork's files, then removed with them
            ['mmcv'],
            {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'},
            "needs mmcv: pip uninstall -y onedl-mmcv, then pip install 'mmmpq[onedl]'",
        ),
    ],
)
def test_what_is_missing_and_the_line_that_installs_it(
    installed, hide, absent, versions, sentence
):
    installed.update(versions)
    hide += absent
    with pytest.raises(ImportError) as caught:
        compat.require()
    assert str(caught.value) == f'mmmpq {sentence}'


def test_the_detector_and_classifier_toolboxes_are_not_required(hide):
    hide += ['mmdet', 'mmpretrain', 'mmseg', 'pkg_resources']
    compat.require()


def test_a_folder_without_its_init_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / 'half_removed').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert compat._is_there('numpy')
    assert not compat._is_there('half_removed')


def import_mmmpq(folder, code='import mmmpq'):
    """Import it with ``folder`` first on the path; what it ended with."""
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    return done.stderr.splitlines()[-1]


def test_a_torchvision_of_another_torch(tmp_path):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / 'torchvision.py').write_text(text)
    said = import_mmmpq(tmp_path, 'import mmmpq.models')
    assert said.startswith(f'ImportError: torch {torch.__version__} and torchvision ')
    assert 'do not match (operator torchvision::nms does not exist): pip' in said


def test_import_says_what_is_missing(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        'import importlib.machinery as machinery\n'
        'find = machinery.PathFinder.find_spec\n'
        'machinery.PathFinder.find_spec = lambda name, path=None, target=None: (\n'
        "    None if name.split('.')[0] == 'mmcv' else find(name, path, target))\n"
    )
    assert import_mmmpq(tmp_path).startswith('ImportError: mmmpq needs mmcv: pip ')


def test_the_import_and_the_help_are_light():
    """Neither torch nor a toolbox nor a plot library is imported for them."""
    heavy = {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'scipy'}
    heavy.add('matplotlib')
    code = (
        'import sys, mmmpq, mmmpq.cli; mmmpq.cli.main(["--help"]); '
        f'print({heavy} & set(sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.endswith('set()\n'), done.stdout + done.stderr
    assert 'mmmpq VERB --help' in done.stdout


def test_names_come_when_they_are_asked_for():
    assert mmmpq.quantize is mmmpq.models.quantize
    assert set(mmmpq.__all__) <= set(dir(mmmpq))
    assert all(hasattr(mmmpq, name) for name in mmmpq.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        mmmpq.quantise  # noqa: B018


@pytest.mark.parametrize('family', [OPENMMLAB, ONEDL])
def test_untested_versions_give_one_warning_with_their_names(installed, family):
    installed.update({**family, 'torch': '2.11.7', 'numpy': '2.4.9'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # patch releases are as good as tested
        compat.warn_untested()
    engine, mmcv, mmdet, *_ = family
    installed.update({'torch': '2.12.0+cu130', mmcv: '2.10.0', mmdet: '3.2.9'})
    with pytest.warns(UserWarning) as caught:
        compat.warn_untested()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert 'with torch 2.12.0+cu130 (tested: 2.11), ' in message
    assert f', {mmcv} 2.10.0 (tested: {compat.TESTED[mmcv]});' in message
    assert mmdet not in message and engine not in message


def test_every_distribution_of_a_toolbox_has_a_tested_version():
    names = {name for names in compat.TOOLBOXES.values() for name in names}
    assert names | {'torch', 'numpy'} == set(compat.TESTED)


def test_packages_without_metadata_are_passed_over(installed):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compat.warn_untested()
        compat.warn_mixed()


@pytest.mark.parametrize(
    'versions, named, line',
    [
        (
            {**ONEDL, 'mmdet': '3.3.0'},
            'mmdet and onedl-mmdetection',
            "pip uninstall -y mmdet onedl-mmdetection, then pip install 'mmmpq[onedl]'",
        ),
        (
            {**OPENMMLAB, 'mmcv-lite': '2.1.0'},
            'mmcv and mmcv-lite',
            "pip uninstall -y mmcv mmcv-lite, then pip install 'mmmpq[openmmlab]'",
        ),
        (
            {'mmengine': '0.10.7', 'mmcv': '2.1.0', **ONEDL},
            'mmengine and onedl-mmengine, mmcv and onedl-mmcv',
            'pip uninstall -y mmengine onedl-mmengine mmcv onedl-mmcv, then '
            "pip install 'mmmpq[onedl]'",
        ),
        (
            {'mmdet': '3.3.0', 'onedl-mmdetection': '3.5.1'},
            'mmdet and onedl-mmdetection',
            f'pip uninstall -y mmdet onedl-mmdetection, then {EITHER}',
        ),
    ],
)
def test_distributions_over_each_other_give_one_warning(
    installed, versions, named, line
):
    installed.update(versions)
    with pytest.warns(UserWarning) as caught:
        compat.warn_mixed()
    assert len(caught) == 1
    assert str(caught[0].message).endswith(f'over each other by {named}: {line}')


def test_families_side_by_side_are_not_mixed(installed):
    """mmdet of one family works with the other's mmcv."""
    installed.update({'mmengine': '0.10.7', 'mmcv': '2.1.0'})
    installed.update({'onedl-mmdetection': '3.5.1', 'onedl-mmpretrain': '1.3.6'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compat.warn_mixed()


def openmmlab_path(package):
    from pkg_resources import get_distribution

    return get_distribution(package).location


def onedl_path(package):
    from importlib.metadata import distribution

    return distribution(package).locate_file('')


@pytest.mark.parametrize('path, said', [(openmmlab_path, 1), (onedl_path, 0)])
def test_pkg_resources_only_where_mmengine_reads_it(hide, monkeypatch, path, said):
    monkeypatch.setattr('mmengine.utils.get_installed_path', path)
    hide += ['pkg_resources']
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        compat.warn_pkg_resources()
    assert len(caught) == said
    for warning in caught:
        assert str(warning.message).endswith("pip install 'setuptools<82'")


def test_mmengine_is_asked_the_right_function():
    """The installed one needs it if it is OpenMMLab's."""
    needed = 'pkg_resources' in get_installed_path.__code__.co_names
    assert needed == ('mmengine' in compat._installed('mmengine'))


ALONE = """
import sys
sys.modules['{absent}'] = None
import mmmpq
from mmmpq.models import build_model
from mmmpq.search import SearchSpace
from mmmpq.user_config import read_config
import mmmpq.engine.hooks
cfg = read_config('{config}')
cfg.model.update(type='mmmpq.QuantModel', base_type=cfg.model.type, quant=dict())
print(len(SearchSpace(build_model(cfg)).groups))
"""


@pytest.mark.parametrize(
    ('absent', 'config'),
    [
        ('mmdet', 'mmpretrain::resnet/resnet18_8xb32_in1k.py'),
        ('mmpretrain', 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'),
        ('mmseg', 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'),
        ('mmdet', 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    ],
)
def test_one_toolbox_is_enough(absent, config):
    code = ALONE.format(absent=absent, config=config)
    found = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert int(found.stdout.split()[-1]) >= 10
