"""Two workers share the cores: one thread each, and no state left between tests."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch

# What takes longest, in this order, so that no worker is left with it at the end.
FIRST = (
    'test_demo',
    'test_gpu_script',
    'test_wheel',
    'test_distributed',
    'test_qfa_demo',
    'test_configs',
    'test_segmentation',
    'test_quant_model',
    'test_tools',
    'test_sandwich',
)

torch.set_num_threads(1)
if not torch.cuda.is_available():  # before anything imports Triton
    os.environ['TRITON_INTERPRET'] = '1'


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sort the files, and say what one worker is to run, for ``--dist loadgroup``.

    A file's tests share what its fixtures made, and stay together. Those that run the
    configs take longer than half of all others, and share little.
    """
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))
    for item in items:
        runs = item.path.stem == 'test_configs' and 'tool' in item.fixturenames
        group = item.name if runs else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))


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
