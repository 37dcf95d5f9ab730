"""What is said of a float net that a training starts from."""

import pytest
import torch
from mmengine.registry import MODELS

from mmmpq.engine.hooks.checkpoint import WholeCheckpointHook
from mmmpq.quantizers import Quantizer


def test_no_list_of_what_a_float_net_has_not(make, tmp_path, capsys):
    net = MODELS.build(dict(type='TinyNet'))
    path = tmp_path / 'float.pth'
    torch.save(dict(state_dict=net.state_dict(), meta={}), path)
    for hooks in ((), (dict(type='mmmpq.CalibrationHook'),)):
        search = None if hooks else {}
        quant = {'model.quant.policy': 'W4A4'} if hooks else {}
        runner = make(search, hooks, load_from=str(path), log_level='INFO', **quant)
        runner.train()
        out = capsys.readouterr()
        said = out.out + out.err
        assert 'do not match exactly' not in said
        assert 'is of a float net: ' in said and 'are begun anew' in said
        quantizers = [m for m in runner.model.modules() if isinstance(m, Quantizer)]
        assert all(q.calibrated for q in quantizers)


def test_a_checkpoint_of_another_net_is_still_refused(make, tmp_path):
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'a.weight': torch.zeros(1)}, meta={}), path)
    runner = make({}, [WholeCheckpointHook()], load_from=str(path))
    with pytest.raises(ValueError, match='has nothing of this model'):
        runner.train()
