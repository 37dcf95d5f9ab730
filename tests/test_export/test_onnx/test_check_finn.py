"""What of a QONNX file stops FINN: one rule broken at a time, and nets of ours."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from mmmpq.layers import calibrating
from mmmpq.models import quantize

pytest.importorskip('onnx')

from mmmpq.export.onnx.check.file import check_onnx
from mmmpq.export.onnx.graph import export_qonnx
from mmmpq.export.onnx.qonnx import DOMAIN


class Chain(nn.Module):
    """Convolutions with a ReLU between."""

    def __init__(self, shared=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.head, self.shared = nn.Identity(), shared

    def extract_feat(self, x):
        x = torch.relu(self.first(x))
        return self.second(torch.relu(self.first(x)) if self.shared else x)


def chain(path, policy='W4A4', shared=False, **quant):
    torch.manual_seed(0)
    quant = quant or dict(quantizer=dict(type='LinearQuantizer', per_channel=True))
    model = quantize(Chain(shared), policy=policy, fixed={'*': None}, **quant).eval()
    with torch.no_grad(), calibrating(model):
        model.extract_feat(torch.randn(2, 3, 12, 12))
    export_qonnx(model, path, (3, 12, 12))
    return check_onnx(path, 'finn')


@pytest.mark.parametrize('policy', ['W2A2', 'W4A4', 'W8A8'])
def test_a_chain_goes_into_finn(policy, path):
    found = chain(path, policy)
    assert found.ok, str(found)
    assert [v.name for v in found.verdicts] == ['first', 'second']


def test_what_of_our_nets_stops_finn(path, classifier, settled):
    found = chain(path, shared=True)
    first, _ = found.verdicts
    assert 'its weight is read by 2 nodes' in '; '.join(first.why)
    found = chain(
        path,
        w_quantizer=dict(type='DoReFaQuantizer'),
        a_quantizer=dict(type='PACTQuantizer'),
    )
    assert 'its zero point is' in '; '.join(found.verdicts[0].why)
    export_qonnx(settled(classifier(policy='W4A4')), path, (3, 32, 32))
    found = check_onnx(path, 'finn')
    said = {v.type: v.why[0] for v in found.verdicts if not v.is_layer}
    assert said['Add'].startswith('it adds what is float: BatchNormalization')
    assert 'nodes read it; accepted is one quantizer' in said['Relu']
    assert not found.ok


def quant(g, x, bits=4, zero=0.0, scale=0.5, signed=1, narrow=0):
    at = f'q{len(g.nodes)}'
    values = dict(s=np.float32(scale), z=np.float32(zero), b=np.float32(bits))
    names = [g.constant(f'{at}{key}', value) for key, value in values.items()]
    return g.node('Quant', x, *names, domain=DOMAIN, signed=signed, narrow=narrow)


def qconv(g, x, **weight):
    values = np.ones((4, 4, 3, 3), np.float32)
    w = g.constant(f'conv{len(g.nodes)}.weight', values)
    return g.node('Conv', x, quant(g, w, **weight), pads=[1] * 4)


FINN = {  # a graph's output, and what is said
    'nothing': (lambda g: qconv(g, quant(g, 'x')), ''),
    'behind a Relu': (
        lambda g: qconv(g, quant(g, g.node('Relu', 'x'), signed=0)),
        '',
    ),
    'channels': (
        lambda g: qconv(g, quant(g, 'x'), scale=np.ones((4, 1, 1, 1))),
        '',
    ),
    'input channels': (
        lambda g: qconv(g, quant(g, 'x'), scale=np.ones((1, 4, 1, 1))),
        'its scales are not one for each output channel',
    ),
    'many zeros': (
        lambda g: qconv(g, quant(g, 'x'), zero=np.zeros((4, 1, 1, 1))),
        'its zero point is 4 numbers; accepted is one',
    ),
    'zero point': (
        lambda g: qconv(g, quant(g, 'x', zero=2)),
        'its zero point is 2; accepted is 0',
    ),
    'nine bits': (lambda g: qconv(g, quant(g, 'x', bits=9)), 'its width is 9'),
    'unsigned': (
        lambda g: qconv(g, quant(g, 'x', signed=0)),
        'the input of the graph stands before it; accepted is a Relu',
    ),
    'signed behind a Relu': (
        lambda g: qconv(g, quant(g, g.node('Relu', 'x'))),
        'behind a Relu accepted is unsigned',
    ),
    'float input': (lambda g: qconv(g, 'x'), 'its input is float'),
    'an operator': (
        lambda g: qconv(g, quant(g, g.node('Softmax', 'x'))),
        'FINN has no hardware for it',
    ),
    'a sum': (
        lambda g: g.node('Add', *(quant(g, qconv(g, quant(g, 'x'))) for _ in '12')),
        '',
    ),
    'scales of a sum': (
        lambda g: g.node(
            'Add', *(quant(g, qconv(g, quant(g, 'x')), scale=s) for s in (0.1, 0.2))
        ),
        'its inputs have different scales',
    ),
    'widths of a sum': (
        lambda g: g.node(
            'Add', *(quant(g, qconv(g, quant(g, 'x')), bits=b) for b in (4, 8))
        ),
        'its inputs have different types',
    ),
}


@pytest.mark.parametrize('name', FINN)
def test_each_rule_of_finn(name, graph, path):
    make, said = FINN[name]
    graph.save(path, make(graph), [DOMAIN])
    found = check_onnx(path, 'finn')
    why = [text for v in found.verdicts for text in v.why]
    assert found.ok == (not said) and all(said in text for text in why)
    assert len(why) == bool(said)
    assert json.loads(json.dumps(found.to_dict()))['ok'] == found.ok
