"""Small nets of fixed precision, whose BatchNorms do something, and ONNX graphs."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmpq.layers.base import calibrating

CLASSIFIER = dict(
    default_scope='mmpretrain',
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3, num_classes=4),
    model=dict(
        type='mmmpq.QuantModel',
        base_type='ImageClassifier',
        quant=dict(policy='W3A4'),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=16, topk=(1,)),
    ),
)


@pytest.fixture
def classifier():
    """Config of a ResNet of eleven layers; keys of ``quant`` are overridden."""

    def make(**quant):
        config = Config(copy.deepcopy(CLASSIFIER))
        config.model.quant.update(quant)
        return config

    return make


@pytest.fixture
def settled():
    """The model of a config, in evaluation, as if it had been trained."""

    @torch.no_grad()
    def make(config, size=32):
        init_default_scope(config.default_scope)
        model = dict(config.model)
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        net = MODELS.build(model)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.normal_()
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        with calibrating(net.eval()):
            net(torch.randn(2, 3, size, size))
        return net

    return make


@pytest.fixture
def outputs():
    """All tensors that a model's network gives for fixed images, as one list."""

    def flat(value):
        if isinstance(value, torch.Tensor):
            return [value]
        return [tensor for part in value for tensor in flat(part)]

    @torch.no_grad()
    def run(net, size=32):
        images = torch.randn(
            2, 3, size, size, generator=torch.Generator().manual_seed(1)
        )
        dtype = next(net.parameters()).dtype
        return flat(net(images.to(dtype), mode='tensor'))

    return run


class Graph:
    """An ONNX graph, node by node, of the input 'x'."""

    def __init__(self, shape=(1, 4, 6, 6), opset=21):
        self.shape, self.opset = shape, opset
        self.nodes, self.constants = [], []

    def constant(self, name, values):
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind, *inputs, **attributes):
        from onnx import helper

        out = f'{kind}{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [out], out, **attributes))
        return out

    def pair(self, x, kind='int8', scale=0.1, zero=0):
        at = f'q{len(self.nodes)}'
        scale = self.constant(f'{at}s', np.float32(scale))
        zero = self.constant(f'{at}z', np.array(zero, kind))
        q = self.node('QuantizeLinear', x, scale, zero)
        return self.node('DequantizeLinear', q, scale, zero)

    def weight(self, name='conv', kind='int8', scale=0.1, zero=0, shape=None, **axis):
        shape = shape or (self.shape[1], self.shape[1], 3, 3)[: len(self.shape)]
        low, high = (0, 255) if kind == 'uint8' else (-120, 120)
        q = np.random.default_rng(0).integers(low, high, shape).astype(kind)
        inputs = (
            self.constant(f'{name}.weight_{kind}', q),
            self.constant(f'{name}.weight_scale', np.float32(scale)),
            self.constant(
                f'{name}.weight_zero_point', np.full(np.shape(scale), zero, kind)
            ),
        )
        return self.node('DequantizeLinear', *inputs, **axis)

    def save(self, path, out, domains=()):
        import onnx
        from onnx import TensorProto, helper

        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            'g',
            [info('x', TensorProto.FLOAT, self.shape)],
            [info(out, TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid('', self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 10
        onnx.save(model, path)
        return path


@pytest.fixture
def graph():
    return Graph()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'net.onnx'
