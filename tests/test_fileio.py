"""Files are whole or absent."""

import os
import pickle
import stat

import pytest
import torch

from mmmpq.fileio import (
    atomic_save,
    atomic_write,
    check_place,
    read_checkpoint,
    strict_json,
)


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


class Attack:
    def __reduce__(self):
        return os.system, ('exit 1',)


DAMAGED = {
    'empty': b'',
    'text': b'weights',
    'html': b'<!DOCTYPE html>',
    'key error': pickle.dumps({'a': 1})[:-2] + b'e.',
    'zip cut short': None,
    'protocol 4': pickle.dumps(Attack(), 4),
    'pickle cut short': pickle.dumps(dict.fromkeys(map(str, range(99))))[:200],
}


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_checkpoint_is_one_line(name, tmp_path):
    whole = atomic_save(dict(x=torch.arange(3000)), tmp_path / 'epoch_1.pth')
    data = DAMAGED[name]
    data = whole.read_bytes()[:-500] if data is None else data
    path = atomic_write(tmp_path / 'epoch_2.pth', data)
    with pytest.raises(ValueError, match=r'epoch_2\.pth') as error:
        read_checkpoint(path)
    said = str(error.value)
    assert f'last whole checkpoint beside it is {whole}' in said
    assert len(said.splitlines()) == 1 and 'weights_only' not in said


@pytest.mark.skipif(torch.__version__ < '2.6', reason='loads without protection')
@pytest.mark.parametrize('protocol', [None, 2])
def test_a_malicious_checkpoint_names_what_it_asks_for(protocol, tmp_path):
    path = tmp_path / 'x.pth'
    if protocol is None:
        torch.save(dict(state_dict=Attack()), path)
    else:
        path.write_bytes(pickle.dumps(dict(state_dict=Attack()), protocol))
    with pytest.raises(ValueError, match=r'x\.pth asks for \w+\.system, w') as e:
        read_checkpoint(path)
    assert 'weights_only' not in str(e.value)


@pytest.mark.parametrize(
    'content', [3, [1], {1: 2}, dict(state_dict=[]), dict(state_dict={}, meta=4), 'x']
)
def test_what_is_no_checkpoint(content, tmp_path):
    path = atomic_save(content, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'x\.pth holds .*a dict of tensors by name'):
        read_checkpoint(path)


def test_no_checkpoint(tmp_path):
    for path in (tmp_path / 'x.pth', tmp_path):
        with pytest.raises(FileNotFoundError, match='checkpoint: found no file'):
            read_checkpoint(path)


def test_a_place_to_write_to(tmp_path, monkeypatch):
    file = atomic_write(tmp_path / 'file', 'x')
    assert check_place(tmp_path / 'new/x.json', '--out') == ''
    assert not (tmp_path / 'new').exists()
    assert check_place(file, '--out') == ', replaced'
    for path, message in (
        (tmp_path, f'--out: {tmp_path} is a folder'),
        (file / 'x' / 'y.json', f'--out: {file} is a file'),
    ):
        with pytest.raises(ValueError, match=message):
            check_place(path, '--out')
    monkeypatch.setattr(os, 'access', lambda *args: False)
    with pytest.raises(ValueError, match=f'--out: the folder {tmp_path} may not be'):
        check_place(tmp_path / 'x', '--out')


def test_only_a_checkpoint_of_the_same_run_is_named(tmp_path):
    for name in ('epoch_1.pth', 'searched.pth', 'epoch_10.pth'):
        atomic_save(dict(x=torch.ones(9)), tmp_path / name)
    path = atomic_write(tmp_path / 'epoch_11.pth', b'')
    atomic_write(tmp_path / 'epoch_10.pth', b'PK cut short')
    with pytest.raises(ValueError, match=r'beside it is .*epoch_1\.pth$'):
        read_checkpoint(path)
    path = atomic_write(tmp_path / 'x.pth', b'')
    with pytest.raises(ValueError, match=r'more than weights: EOFError$'):
        read_checkpoint(path)


@pytest.mark.parametrize('number', ['1e999', 'NaN', '-Infinity', '9' * 400, '9' * 5000])
def test_a_number_that_no_float_holds(number):
    with pytest.raises(ValueError, match=r'found .{2,40}; accepted are finite numbers'):
        strict_json(f'{{"clock_hz": {number}}}')
    assert strict_json(f'[{2**60 + 1}, 1.5]') == [2**60 + 1, 1.5]
