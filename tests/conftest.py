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


def pytest_collection_modifyitems(items):
    """Sort the files."""
    order = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Say what one worker is to run.

    A file's tests share what its fixtures made, and stay together. Those that run the
    configs take long, and share little. xdist's own groups get lost (3.8, with pytest
    9.2).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split('::')[0]
            return nodeid if file.endswith('test_configs.py') else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def seeded():
    """Make every test see the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture
def no_report(monkeypatch):
    """Searches draw none: that takes longer than a short search."""
    monkeypatch.setattr('mmmpq.engine.results.write_report', lambda work_dir: None)


@pytest.fixture(autouse=True)
def own_scope():
    """Remove the default scope that a test's Runner has left behind."""
    yield
    from mmengine.registry import DefaultScope

    DefaultScope._instance_dict.clear()
