"""Files are whole or absent."""

import os
import stat

import pytest
import torch

from mmmpq.fileio import atomic_save, atomic_write


def test_text_bytes_and_folders(tmp_path):
    path = tmp_path / 'a' / 'b' / 'file'
    assert atomic_write(path, 'µ\n') == path
    assert path.read_bytes() == 'µ\n'.encode()
    atomic_write(str(path), b'\x00\x01')
    assert path.read_bytes() == b'\x00\x01'
    assert os.listdir(path.parent) == ['file']


def test_tensors(tmp_path):
    path = atomic_save(dict(x=torch.arange(3)), tmp_path / 'x.pth')
    assert torch.equal(torch.load(path)['x'], torch.arange(3))


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = atomic_write(tmp_path / 'x.pth', 'old')
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        atomic_save(lambda: None, path)  # cannot be pickled
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['x.pth']


@pytest.mark.parametrize('mask', [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = atomic_write(tmp_path / 'new', '')
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.chmod(0o640)
        atomic_write(path, 'again')
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
