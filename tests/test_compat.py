import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner

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


def test_untested_versions_give_one_warning_with_their_names(monkeypatch):
    installed = {name: tested + '.3' for name, tested in compat.TESTED.items()}
    monkeypatch.setattr(compat.metadata, 'version', installed.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # patch releases are as good as tested
        compat.warn_untested()
    installed.update(torch='2.12.0+cu130', mmcv='2.10.0', mmdet='3.2.9')
    with pytest.warns(UserWarning) as caught:
        compat.warn_untested()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert 'torch 2.12.0+cu130 (tested: 2.11)' in message
    assert 'mmcv 2.10.0' in message
    assert 'mmdet' not in message


def test_a_package_without_metadata_is_passed_over(monkeypatch):
    def version(name):
        raise compat.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compat.metadata, 'version', version)
    compat.warn_untested()
