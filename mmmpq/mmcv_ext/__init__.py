"""``mmcv._ext`` without a compiler: mmcv's operators on torch and torchvision.

``mmcv-lite`` and a fork built without its ops hold all of mmcv but this one module,
which ``mmcv.ops`` imports. ``mmcv_finder.py`` lets Python find it here, unless a
compiled one is there. It is loaded as ``mmcv._ext`` and imports nothing of mmmpq, since
mmdet may be imported first.

Names, arguments and results are those of mmcv 2.x: functions write into the tensors
that they are given. There are the operators that the detectors of MMDetection and the
classifiers of MMPretrain call; any other one is an error at its first call.
"""

from typing import Any

import torch

try:
    import torchvision
except (ImportError, RuntimeError) as error:
    raise ImportError(
        f'torchvision cannot be imported beside torch {torch.__version__} ({error}): '
        'install them as a pair from the same index'
    ) from error

from .attention import ms_deform_attn_backward, ms_deform_attn_forward
from .carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .nms import nms, nms_match, softnms
from .roi_align import roi_align_backward, roi_align_forward
from .roi_pool import roi_pool_backward, roi_pool_forward

__all__ = [
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """What MMEngine's list of the environment prints as mmcv's compiler."""
    return f'none: torch and torchvision {torchvision.__version__} through mmmpq'


def get_compiling_cuda_version() -> str:
    """The CUDA version that the operators run on: torch's own."""
    return torch.version.cuda or 'not available'


def __getattr__(name: str) -> Any:
    """An operator that is not here: mmcv finds it at import, a call is an error."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mmcv._ext.{name} is not among the operators that run without a compiled '
            "mmcv; to compile it: 'pip uninstall mmcv-lite', then 'MMCV_WITH_OPS=1 pip "
            "install --no-build-isolation mmcv==2.1.0' (in a clone of mmmpq, "
            'MMMPQ_MMCV=compiled does it)'
        )

    missing.__name__ = name
    return missing
