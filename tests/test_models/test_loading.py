"""Checkpoints of other trainers: names and widths that are not what the net has."""

import torch
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from mmpretrain.models.utils import LeAttention
from torch import nn

from mmmpq.models import quantize
from mmmpq.models.loading import load_whole

CANDIDATES = [(2, 2), (4, 4), (8, 8)]


def test_a_supernet_s_checkpoint_with_the_prefix_of_another_ddp():
    """It gives a net of one precision the ranges of its widths, as without it."""

    class Net(BaseModel):
        def __init__(self):
            super().__init__()
            self.convs = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)))

        def forward(self, x, *_, **__):
            return self.convs(x)

    supernet = quantize(Net(), candidates=CANDIDATES)
    supernet(torch.randn(2, 3, 4, 4))
    with torch.no_grad():
        for name, param in supernet.named_parameters():
            if name.endswith('range'):
                param.mul_(torch.rand_like(param) + 0.5)
    nets = []
    for prefix in ('', 'module.'):
        state = supernet.state_dict(prefix=prefix)
        nets.append(quantize(Net(), policy='W4A4'))
        _load_checkpoint_to_model(nets[-1], dict(state_dict=state))
    state, given = (net.state_dict() for net in nets)
    assert all(torch.equal(state[key], given[key]) for key in state)
    assert all(len(v) == 1 for k, v in given.items() if k.endswith('range'))
    assert all(int(v) >= 0 for k, v in given.items() if k.endswith('signed'))


def test_ranges_of_unknown_widths_are_calibrated_anew():
    supernet = quantize(nn.Sequential(*layers()), candidates=CANDIDATES)
    supernet(torch.randn(2, 3, 4, 4))
    state = dict(supernet.state_dict())  # without what says the widths
    model = quantize(nn.Sequential(*layers()), policy='W4A4')
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert {'1.w_quantizer.range', '1.w_quantizer.signed'} <= set(missing)
    assert not model[1].w_quantizer.calibrated


def test_what_is_computed_as_evaluation_begins_is_of_the_loaded_weights():
    x = torch.randn(1, 4, 8)
    nets = [nn.Sequential(LeAttention(8, 4, 2, 1, (2, 2))) for _ in range(2)]
    nets = [quantize(net, policy='W4A8', fixed={}) for net in nets]
    with torch.no_grad():
        nets[0][0].attention_biases.normal_()
        nets[0](x)
    load_whole(nets[1].eval(), nets[0].state_dict(), 'a.pth')
    assert torch.equal(nets[1](x), nets[0].eval()(x))


def layers():
    return [nn.Conv2d(3, 3, 1) for _ in range(3)]
