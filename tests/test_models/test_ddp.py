"""Two processes: DDP waits for every parameter, sampled path or not."""

import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mmmpq.models import apply_policy, quantize
from mmmpq.search import SearchSpace

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = [(0, 0), (2, 2), (4, 32), (32, 32)]


class BasicBlock(nn.Module):
    downsample = None

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return (self.conv2(self.conv1(x).relu()) + x).relu()


def network(**quant):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), BasicBlock(), BasicBlock())
    net = quantize(net, candidates=CANDIDATES, ends='fixed', **quant)
    net(torch.randn(8, 3, 5, 5).exp())  # every layer calibrates
    return net


def gradients(net):
    return [p.grad.clone() for p in net.parameters() if p.requires_grad]


def compare(net, choices):
    """The gradient with DDP is the mean of those of the processes."""
    rank, space = distributed.get_rank(), SearchSpace(net)
    image = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    wrapped = DistributedDataParallel(net)
    for choice in choices:
        for group, j in zip(space.groups, choice, strict=True):
            group.relaxation.choice = j
        alone = []
        for part in image:
            net.zero_grad()
            net(part).square().mean().backward()
            alone.append(gradients(net))
        net.zero_grad()
        wrapped(image[rank]).square().mean().backward()
        for found, one, two in zip(gradients(net), *alone, strict=True):
            torch.testing.assert_close(found, (one + two) / 2)


def main():
    distributed.init_process_group('gloo')
    every = list(product(range(len(CANDIDATES)), repeat=2))
    for own in (True, False):
        compare(network(mixing='sampled', own_weights=own), every)
        compare(network(mixing='outputs', own_weights=own), [(0, 0)] * 2)
    net = network()
    space = SearchSpace(net)
    policy = space.policy([0, 1])
    apply_policy(net, policy)
    wrapped = DistributedDataParallel(net)
    for _ in range(2):  # the second forward fails if a parameter was left out
        wrapped(torch.randn(2, 3, 5, 5)).sum().backward()
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason='no torch.distributed')
def test_two_processes():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
        + [f'--master_port={port}', __file__],
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == '__main__':
    main()
