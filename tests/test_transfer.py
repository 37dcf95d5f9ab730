"""Copies to the host and back, of which the host waits for one way alone."""

import pytest
import torch

from mmmpq.transfer import Fetch, send

DEVICES = ['cpu']
DEVICES += ['cuda'] if torch.cuda.is_available() else []


@pytest.mark.parametrize('device', DEVICES)
def test_there_and_back(device):
    x = torch.randn(50)
    there = send(x, torch.device(device))
    assert there.device.type == device
    fetch = Fetch(there.requires_grad_(True) * 2)
    back = fetch.result()
    assert back.device.type == 'cpu' and not back.requires_grad
    assert torch.equal(back, 2 * x) and torch.equal(fetch.result(), back)
    assert bool(Fetch(torch.isfinite(there).all()).result())
