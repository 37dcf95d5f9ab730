"""Names in the checkpoints of fixed and of published nets, made those of ours."""

import re
from typing import Any

State = dict[str, Any]

BLOCK = re.compile(r'blocks\.(\d+)\.(?:mobile_inverted_)?conv\.(\w+)\.(.*)')
PARTS = dict(
    inverted_bottleneck='expand_conv',
    depth_conv='depthwise_conv',
    point_linear='linear_conv',
)


def rename_published(state: dict[str, Any], backbone: str = 'backbone.') -> None:
    """Names of a checkpoint such as ``ofa_mbv3_d234_e346_k357_w1.2``, in place.

    Its feature mix layer, a 1x1 convolution without a bias, becomes the first layer of
    ``StackedLinearClsHead``, with a bias of 0. Any other checkpoint stays as it is.

    Source: Once-for-All: Train One Network and Specialize it for Efficient Deployment,
    2020, arXiv 1908.09791.
    """
    if 'first_conv.conv.weight' not in state:
        return
    blocks = {int(m[1]) for key in state if (m := BLOCK.match(key))}
    layers = dict(first_conv='layer0', final_expand_layer=f'layer{len(blocks) + 1}')
    for key in list(state):
        value = state.pop(key)
        # wrapped layers are called bn.bn, conv.conv and linear.linear
        name = re.sub(r'\.(bn|conv|linear)\.\1\.', r'.\1.', key)
        layer, _, rest = name.partition('.')
        if match := BLOCK.match(name):
            number, part, rest = match.groups()
            name = f'layer{int(number) + 1}.{_in_block(part, rest)}'
            state[backbone + name] = value
        elif layer in layers:
            state[f'{backbone}{layers[layer]}.{rest}'] = value
        elif layer == 'feature_mix_layer':
            state['head.layers.0.fc.weight'] = value.flatten(1)
            state['head.layers.0.fc.bias'] = value.new_zeros(len(value))
        else:  # classifier.linear
            state[f'head.layers.1.fc.{rest.rpartition(".")[2]}'] = value


def _in_block(part: str, rest: str) -> str:
    if rest.startswith('se.fc.'):
        layer, _, rest = rest.removeprefix('se.fc.').partition('.')
        return f'se.{dict(reduce="conv1", expand="conv2")[layer]}.conv.{rest}'
    rest = re.sub(r'(\d+to\d+)_matrix', r'matrix_\1', rest)
    return f'{PARTS[part]}.{rest}'


def rename_flat(state: State, prefix: str) -> None:
    """mmpretrain's names ``layer0`` ... of a MobileNetV3 to those of stages, in place.

    Neighbouring blocks of one width are a stage.
    """
    widths = {}
    while (key := f'{prefix}layer{len(widths) + 1}.linear_conv.conv.weight') in state:
        widths[len(widths) + 1] = state[key].shape[0]
    if len(widths) < 2:
        return
    names = {0: 'stem', 1: 'first', len(widths) + 1: 'last'}
    stage, index = 0, 0
    for i in range(2, len(widths) + 1):
        new = i == 2 or widths[i] != widths[i - 1]
        stage, index = (stage + 1, 0) if new else (stage, index + 1)
        names[i] = f'stage{stage}.{index}'
    for key in [k for k in state if k.startswith(f'{prefix}layer')]:
        layer, _, rest = key[len(prefix) :].partition('.')
        name = names[int(layer.removeprefix('layer'))]
        state[f'{prefix}{name}.{rest}'] = state.pop(key)
