"""What would replace quantized layers, or pass them by, after they were quantized."""

from functools import partial, wraps
from inspect import signature
from typing import Any

from mmengine.logging import print_log
from mmengine.model import efficient_conv_bn_eval
from torch import nn

from mmmpq.layers import quantized_layers

# By what methods the toolboxes' blocks, and others, become fewer layers. They take no
# argument: FPG's `fuse`, a part of its forward, does.
MERGING = (
    'switch_to_deploy',
    'fuse',
    'fuse_repvgg_block',
    'merge_kernel',
    'reparameterize',
    'reparam',
)


def keep_layers(model: nn.Module) -> None:
    """Sees to it that the quantized layers of ``model`` stay, and are what computes.

    Re-parameterisations are refused, and ConvModules do without the fused evaluation of
    convolution and BatchNorm, which reads the weight of the convolution by itself.
    """
    fused = []
    for name, module in model.named_modules():
        if not quantized_layers(module):
            continue
        if getattr(module, 'efficient_conv_bn_eval_forward', None) is not None:
            module.efficient_conv_bn_eval_forward = None
            fused.append(name)
        for method in MERGING:
            merge = getattr(module, method, None)
            if callable(merge) and not signature(merge).parameters:
                setattr(module, method, partial(_refuse, name, method))
    if fused:
        _say(f'of {", ".join(fused)}')


def _refuse(name: str, method: str) -> None:
    raise RuntimeError(
        f'{name}.{method}(): it would replace quantized layers by float ones; call it '
        'on the float model, save that, and quantize what is loaded from there, built '
        'with deploy=True'
    )


def _say(whose: str) -> None:
    print_log(
        f'efficient_conv_bn_eval {whose} is off: it would pass quantized layers by',
        logger='current',
    )


def _of_float_models(turn_on: Any) -> Any:
    """MMEngine's switch, which its Runner calls for ``efficient_conv_bn_eval`` of a
    config, has no effect on parts with quantized layers."""

    @wraps(turn_on)
    def turn_on_for(model: nn.Module) -> None:
        if quantized_layers(model):
            _say(f'of {type(model).__name__}')
        else:
            turn_on(model)

    return turn_on_for


efficient_conv_bn_eval.turn_on_efficient_conv_bn_eval_for_single_model = (
    _of_float_models(
        efficient_conv_bn_eval.turn_on_efficient_conv_bn_eval_for_single_model
    )
)
