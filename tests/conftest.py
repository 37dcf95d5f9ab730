"""Two workers share the cores: one thread each, and no state left between tests."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():  # before anything imports Triton
    os.environ['TRITON_INTERPRET'] = '1'


@pytest.fixture(autouse=True)
def seeded():
    """Make every test see the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_scope():
    """Remove the default scope that a test's Runner has left behind."""
    yield
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
