"""What a training run of the toolboxes has besides: the search lives with all of it."""

from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, convert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import METRICS, MODELS, OPTIM_WRAPPERS
from torch import nn
from torch.nn import functional as F

import mmmpq.engine.launch  # noqa: F401  CPUAmpOptimWrapper
from mmmpq.engine.batches import unwrapped
from mmmpq.layers import MixedConv2d, quantized_layers
from mmmpq.models import quantize
from mmmpq.policy import Policy

VAL = dict(
    val_dataloader=dict(
        batch_size=8,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='TinyPictures', n=16, augment=False),
    ),
    val_cfg=dict(),
    val_evaluator=dict(type='TinyAccuracy'),
)


@METRICS.register_module(name='TinyAccuracy', force=True)
class TinyAccuracy(BaseMetric):
    def process(self, data_batch, data_samples):
        right = torch.stack(list(data_samples)).argmax(1) == data_batch['labels']
        self.results += right.tolist()

    def compute_metrics(self, results):
        return dict(accuracy=sum(results) / len(results))


@OPTIM_WRAPPERS.register_module(name='ScaledOptimWrapper', force=True)
class ScaledOptimWrapper(OptimWrapper):
    """AmpOptimWrapper's loss scaling, where there is no accelerator."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        self._scale_update_param = None

    backward, step = AmpOptimWrapper.backward, AmpOptimWrapper.step


@MODELS.register_module(name='BackboneNet', force=True)
class BackboneNet(BaseModel):
    """mmdet's ResNet with frozen stages, and a head."""

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = MODELS.build(backbone)
        self.fc = nn.Linear(32, 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = self.fc(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=F.cross_entropy(x, labels)) if mode == 'loss' else x


def searched(runner, hook):
    """The policy fits, the logits have moved, all is finite."""
    policy = Policy.load(Path(runner.work_dir) / 'policy.json')
    assert all(t.of(policy) <= t.limit for t in hook.search.tables)
    assert hook.search.steps > 0
    assert any(p.any() for p in hook.search.space.logits)
    state = runner.model.state_dict()
    assert all(torch.isfinite(v).all() for v in state.values())
    return [p.detach().clone() for p in hook.search.space.logits]


@pytest.mark.parametrize('joint', [False, True])
def test_bfloat16_on_a_cpu(make, hook_of, joint):
    seen = set()
    runner = make(
        search=dict(joint=joint), **{'optim_wrapper.type': 'CPUAmpOptimWrapper'}
    )
    runner.model.convs[1].register_forward_hook(lambda m, i, o: seen.add(o.dtype))
    runner.train()
    logits = searched(runner, hook_of(runner))
    assert torch.bfloat16 in seen
    assert {p.dtype for p in logits} == {torch.float32}


@pytest.mark.parametrize('joint', [False, True])
def test_a_scaled_loss_gives_the_same_search(make, hook_of, joint):
    """Powers of two change no rounding."""
    found = []
    for changes in ({}, dict(type='ScaledOptimWrapper', scale=2.0**12)):
        runner = make(
            search=dict(joint=joint),
            optim_wrapper=dict(accumulative_counts=2, **changes),
        )
        runner.train()
        found.append(searched(runner, hook_of(runner)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_overflow_leaves_out_both_steps(make, hook_of, monkeypatch):
    """A scale that makes gradients infinite: no step until the scaler has shrunk it."""
    net = MODELS.get('TinyNet')
    forward = net.forward

    def steep(*args, **kwargs):  # the first gradient is 2^133
        out = forward(*args, **kwargs)
        return dict(loss=64 * out['loss']) if isinstance(out, dict) else out

    monkeypatch.setattr(net, 'forward', steep)
    runner = make(
        search=dict(warmup=0.0),
        optim_wrapper=dict(type='ScaledOptimWrapper', scale=2.0**127),
    )
    runner.train()
    searched(runner, hook_of(runner))
    assert 0 < hook_of(runner).search.steps < runner.max_iters
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**127


@pytest.mark.parametrize('joint', [False, True])
def test_accumulation_and_clipping(make, hook_of, joint):
    runner = make(
        search=dict(joint=joint, clip_grad=dict(max_norm=1.0)),
        optim_wrapper=dict(accumulative_counts=3, clip_grad=dict(max_norm=0.1)),
    )
    runner.train()
    searched(runner, hook_of(runner))
    hub = runner.message_hub
    assert 'train/grad_norm' in hub.log_scalars
    assert 'train/arch_grad_norm' in hub.log_scalars


@pytest.mark.parametrize('buffers', [False, True])
def test_ema_and_validation(make, hook_of, buffers):
    ema = dict(type='EMAHook', momentum=0.1, update_buffers=buffers)
    runner = make(hooks=[ema], search={}, **VAL)
    runner.train()
    logits = searched(runner, hook_of(runner))
    average = next(h for h in runner.hooks if hasattr(h, 'ema_model')).ema_model.module
    for layer in quantized_layers(average).values():
        assert int(layer.a_quantizer.signed) >= 0
    saved = torch.load(Path(runner.work_dir) / 'epoch_3.pth', weights_only=True)
    name = 'convs.1.relaxation.logits'
    assert torch.equal(saved['ema_state_dict'][f'module.{name}'], logits[0])
    assert not torch.equal(saved['state_dict'][name], logits[0])
    assert runner.message_hub.get_scalar('val/accuracy').current() > 0.3


def test_validation_changes_no_search(make, hook_of):
    found = []
    for changes in ({}, VAL):
        runner = make(search={}, **changes)
        runner.train()
        found.append(searched(runner, hook_of(runner)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize('joint', [False, True])
def test_frozen_stages_and_norm_eval(make, hook_of, joint):
    """Frozen weights rest; the precisions of their layers are searched all the same."""
    backbone = dict(
        type='mmdet.ResNet',
        depth=18,
        base_channels=4,
        stem_channels=4,
        frozen_stages=1,
        norm_eval=True,
    )
    runner = make(
        search=dict(joint=joint, measure=0),
        model=dict(base_type='BackboneNet', backbone=backbone),
        train_cfg=dict(max_epochs=1),
    )
    before = {}

    class Look(Hook):
        def before_train(self, runner):
            state = runner.model.state_dict()
            before.update({k: v.clone() for k, v in state.items()})

    runner.register_hook(Look())
    runner.train()
    hook = hook_of(runner)
    searched(runner, hook)
    after = runner.model.state_dict()
    for name in ('conv1.weight', 'layer1.0.conv1.weight', 'bn1.running_mean'):
        assert torch.equal(after[f'backbone.{name}'], before[f'backbone.{name}'])
    name = 'backbone.layer2.0.conv1.weight'
    assert not torch.equal(after[name], before[name])
    frozen = next(g for g in hook.search.space.groups if 'layer1' in g.name)
    assert frozen.relaxation.logits.any()


def test_sync_batchnorm_leaves_quantized_layers(make):
    model = convert_sync_batchnorm(make(search={}).model, 'torch')
    assert isinstance(model.norms[0], nn.SyncBatchNorm)
    assert len(quantized_layers(model)) == 5
    assert isinstance(model.convs[1], MixedConv2d)
    assert model.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_factorised_logits(make, hook_of):
    runner = make(
        search=dict(start='biased'),
        **{
            'model.quant.candidates': [(w, a) for w in (2, 4) for a in (3, 8)],
            'model.quant.relaxation': dict(type='Softmax', factorised=True),
        },
    )
    runner.train()
    logits = searched(runner, hook_of(runner))
    assert [len(p) for p in logits] == [4, 4, 4]


def test_layers_through_conv_cfg_need_no_quant_model(make, hook_of):
    """A net whose layers a toolbox's ``conv_cfg`` made has a search space as well."""
    runner = make(search={}, model=dict(_delete_=True, type='TinyNet'))
    quantize(unwrapped(runner), candidates=[(2, 2), (4, 4)])
    runner.train()
    searched(runner, hook_of(runner))
