import sys

import pytest

from mmmpq import mmcv_ext


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch):
    """Make ``mmcv.ops`` run on our operators, where mmcv is compiled too."""
    import mmcv.ops  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', mmcv_ext)
