"""The toolboxes' analysis tools trace a net, and count."""

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import nn

from mmmpq.models import quantize
from mmmpq.quantizers import Quantizer


@pytest.mark.parametrize('quant', [dict(policy='W4A4'), dict(candidates=['W2A2'])])
def test_counting_does_not_calibrate(quant):
    """A traced calibration is a graph that takes minutes, of a detector."""
    model = quantize(nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3))), **quant)
    x = torch.randn(1, 3, 4, 4)
    found = get_model_complexity_info(model, inputs=x, show_table=False)
    assert found['flops'] == 3 * 9 * 16
    traced = torch.jit.trace(model, x, check_trace=False)
    assert len(list(traced.inlined_graph.nodes())) < 60
    quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
    assert len(quantizers) == 6
    assert not any(q.calibrated for q in quantizers)
    model(x)
    assert all(q.calibrated for q in quantizers)
