"""A tiny net on tiny random pictures, in a real Runner."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

import mmmpq
from mmmpq.engine.hooks import SearchHook

CANDIDATES = [(2, 2), (3, 3), (4, 4), (8, 8)]


def jitter(item):
    """Augments with all three generators that pipelines draw from."""
    x = item['inputs']
    if random.random() < 0.5:
        x = x.flip(-1)
    x = x.roll(int(np.random.randint(-1, 2)), -1)
    return dict(item, inputs=x + 0.1 * torch.randn_like(x))


@DATASETS.register_module(name='TinyPictures', force=True)
class TinyPictures(BaseDataset):
    """``n`` pictures (3, 8, 8) of four classes, which differ in their mean colours."""

    def __init__(self, n=40, augment=True, **kwargs):
        self.n = n
        super().__init__(pipeline=[jitter] if augment else [], **kwargs)

    def load_data_list(self):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.n, 3, 8, 8, generator=generator)
        tint = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [-1, -1, -1]])
        return [
            dict(inputs=(noise[i] + tint[i % 4, :, None, None]).numpy(), labels=i % 4)
            for i in range(self.n)
        ]

    def get_data_info(self, idx):
        info = super().get_data_info(idx)
        inputs = torch.from_numpy(info['inputs']).clone()
        return dict(inputs=inputs, labels=info['labels'])


@MODELS.register_module(name='TinyNet', force=True)
class TinyNet(BaseModel):
    """Stem, three searchable convs with BatchNorm, dropout and a head."""

    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        sizes = [3, width, width, 2 * width, 2 * width]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in sizes[1:])
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(sizes[-1], 4)

    def forward(self, inputs, labels=None, mode='tensor'):
        x = inputs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
        x = self.fc(self.drop(x.mean((2, 3))))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(x, labels))
        return x


@HOOKS.register_module(name='KillHook', force=True)
class KillHook(mmmpq.engine.hooks.finite.Hook):
    """Ends the process, so to speak, before iteration ``at``."""

    priority = 'VERY_LOW'

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            raise KeyboardInterrupt


BASE = dict(
    model=dict(
        type='mmmpq.QuantModel',
        base_type='TinyNet',
        quant=dict(candidates=CANDIDATES, ends='fixed'),
    ),
    train_dataloader=dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='TinyPictures'),
    ),
    train_cfg=dict(by_epoch=True, max_epochs=3),
    optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4)
    ),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', interval=1),
        logger=dict(type='LoggerHook', interval=5),
    ),
    randomness=dict(seed=3),
    log_level='ERROR',
    default_scope='mmengine',
)
SEARCH = dict(
    type='mmmpq.SearchHook',
    budgets=[dict(type='BOPs', limit='W3A3', input_shape=(3, 8, 8))],
    held_out=0.2,
    warmup=0.1,
    continuation=0.6,
    measure=1,
    calibration=2,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch, no_report):
    """No report: drawing has tests of its own and would take most of the time here. And
    no pause before an iteration-based loop goes through its data again."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)


@pytest.fixture
def make(tmp_path):
    """Build a Runner from BASE, changed; ``search`` changes the SearchHook. ``hooks``
    are configs or objects."""
    count = iter(range(1000))

    def build(search=None, hooks=(), work_dir=None, **changes):
        cfg = Config(copy.deepcopy(BASE))
        cfg.merge_from_dict(copy.deepcopy(changes))
        number = next(count)
        cfg.work_dir = str(work_dir or tmp_path / f'run{number}')
        cfg.experiment_name = f'{tmp_path.name}{number}'
        cfg.custom_hooks = [h for h in hooks if isinstance(h, dict)]
        if search is not None:
            cfg.custom_hooks.append({**copy.deepcopy(SEARCH), **search})
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            if not isinstance(hook, dict):
                runner.register_hook(hook)
        return runner

    return build


@pytest.fixture
def hook_of():
    """The SearchHook of a runner."""
    return lambda runner: next(h for h in runner.hooks if isinstance(h, SearchHook))
