"""The number of images of a file, where a network has it in its code."""

import copy

import onnxruntime
import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.models.loading import load_whole


@pytest.fixture(scope='module')
def swin():
    """Swin V2, small: it drops buffers from what it loads, reads the weight of qkv by
    itself, and divides windows by a number of images that is an int."""
    init_default_scope('mmpretrain')
    cfg = get_config(
        'mmpretrain::swin_transformer_v2/swinv2-tiny-w8_16xb64_in1k-256px.py'
    )
    arch = dict(
        embed_dims=16, depths=[2, 2], num_heads=[2, 4], extra_norm_every_n_blocks=0
    )
    cfg.model.backbone.update(
        arch=arch, img_size=32, window_size=[4, 4], out_indices=(1,), init_cfg=None
    )
    cfg.model.head.update(in_channels=32, num_classes=10)
    cfg.model.train_cfg = None
    cfg.model.update(
        base_type=cfg.model.type, type='mmmpq.QuantModel', quant=dict(policy='W8A8')
    )
    torch.manual_seed(0)
    net = MODELS.build(copy.deepcopy(cfg.model)).train()
    net(torch.randn(4, 3, 32, 32))
    again = MODELS.build(copy.deepcopy(cfg.model)).eval()
    load_whole(again, dict(state_dict=net.state_dict()), 'x.pth')
    return cfg, net.eval(), again


@torch.no_grad()
def test_swin_v2(swin, tmp_path):
    cfg, net, again = swin
    x = torch.randn(1, 3, 32, 32)
    wanted = net(x)
    assert torch.equal(again(x), wanted)
    fold_batchnorm(again, (3, 32, 32))
    path = save_packed(again, tmp_path / 'x.safetensors', cfg)
    assert torch.equal(load_packed(path)(x), wanted)
    export_onnx(again, tmp_path / 'x.onnx', (3, 32, 32))
    session = onnxruntime.InferenceSession(str(tmp_path / 'x.onnx'))
    assert session.get_inputs()[0].shape[0] == 1
    (out,) = session.run(None, dict(images=x.numpy()))
    torch.testing.assert_close(torch.from_numpy(out), wanted, atol=0.02, rtol=0.02)
    many = torch.randn(3, 3, 32, 32)
    (found,) = OnnxNetwork(tmp_path / 'x.onnx')(many).values()  # one by one
    torch.testing.assert_close(found, net(many), atol=0.02, rtol=0.02)
