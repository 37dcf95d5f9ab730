"""Checkpoints of quantizers that served other widths."""

import pytest
import torch
from mmengine.runner.checkpoint import get_state_dict, load_state_dict

from mmmpq.quantizers import LSQQuantizer

WEIGHT = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def calibrated(bits, **kwargs):
    made = LSQQuantizer(bits, 'weight', **kwargs)
    made.calibrate(WEIGHT)
    return made


@pytest.fixture(params=['torch', 'mmengine'])
def transfer(request, tmp_path):
    """Through a file, from one quantizer to another inside a model."""

    def run(source, target):
        source, target = (torch.nn.ModuleDict(dict(q=q)) for q in (source, target))
        mmengine = request.param == 'mmengine'
        state = get_state_dict(source) if mmengine else source.state_dict()
        torch.save(state, tmp_path / 'state.pth')
        state = torch.load(tmp_path / 'state.pth', weights_only=True)
        if mmengine:
            load_state_dict(target, state, strict=False)
        else:
            target.load_state_dict(state, strict=False)
        return target['q']

    return run


@pytest.mark.parametrize('kwargs', [{}, dict(per_channel=True, channels=4)])
@pytest.mark.parametrize(
    'stored, own', [((2, 3, 4, 32), (2, 3, 4)), ((2, 3, 4), (3, 4)), ((2, 3), (2, 3))]
)
def test_rows_are_found_by_their_width(transfer, stored, own, kwargs):
    source, target = calibrated(stored, **kwargs), LSQQuantizer(own, 'weight', **kwargs)
    found = transfer(source, target)
    assert found.calibrated
    for bits in own:
        assert torch.equal(found(WEIGHT, bits), source(WEIGHT, bits))


def test_float_may_be_added(transfer):
    source = calibrated((2, 4))
    found = transfer(source, LSQQuantizer((2, 4, 32), 'weight'))
    assert found.calibrated
    assert torch.equal(found(WEIGHT, 4), source(WEIGHT, 4))


def test_other_widths_are_calibrated_anew(transfer):
    found = transfer(calibrated((2, 4)), LSQQuantizer((2, 8), 'weight'))
    assert not found.calibrated
    assert torch.equal(found(WEIGHT, 8), calibrated((2, 8))(WEIGHT, 8))


def test_a_state_that_does_not_say_is_taken_as_it_is():
    source, target = calibrated((2, 4)), LSQQuantizer((2, 4), 'weight')
    target.load_state_dict(dict(source.state_dict()))
    assert torch.equal(target.step, source.step)
