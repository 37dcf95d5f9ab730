"""Names of version 0.1 go on working, and say what they are called now."""

import importlib
import sys
import warnings

import pytest

import mmmpq.search
import mmmpq.subnets
from mmmpq import moved


@pytest.mark.parametrize('old', sorted(moved.MODULES))
def test_old_modules_are_the_new_ones(old):
    sys.modules.pop(old, None)
    new = moved.MODULES[old]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        importlib.import_module(old.rpartition('.')[0])
    with pytest.warns(DeprecationWarning, match=f'{old} is now {new}'):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new


def test_names_that_have_moved():
    with pytest.warns(DeprecationWarning, match=r'mmmpq\.subnets\.SubnetSpace'):
        found = mmmpq.search.SubnetSpace
    assert found is mmmpq.subnets.SubnetSpace
    with pytest.warns(
        DeprecationWarning, match=r'CostTable is now mmmpq\.search\.Table'
    ):
        assert mmmpq.search.CostTable is mmmpq.search.Table
    with pytest.raises(AttributeError, match='nothing_such'):
        mmmpq.search.nothing_such  # noqa: B018


def test_a_room_that_has_moved(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mmmpq.hooks', raising=False)
    monkeypatch.delattr(mmmpq, 'hooks', raising=False)
    with pytest.warns(DeprecationWarning, match=r'mmmpq\.hooks is now mmmpq\.engine'):
        hooks = mmmpq.hooks
    assert hooks.SearchHook is mmmpq.engine.hooks.SearchHook


def test_what_is_left_of_an_old_folder_is_no_module(tmp_path, monkeypatch):
    (tmp_path / 'hooks').mkdir()
    monkeypatch.setattr(mmmpq, '__path__', [str(tmp_path), *mmmpq.__path__])
    monkeypatch.delitem(sys.modules, 'mmmpq.hooks', raising=False)
    with pytest.warns(DeprecationWarning, match='old name'):
        module = importlib.import_module('mmmpq.hooks')
    assert module is mmmpq.engine.hooks
