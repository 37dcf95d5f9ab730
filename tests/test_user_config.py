"""Files that a config names are found from any folder, by any reader of configs."""

import os

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, PretrainedInit
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR
from mmengine.registry import MODELS
from torch import nn

from mmmpq.costs import BOPs
from mmmpq.engine.hooks import SearchHook
from mmmpq.engine.launch import CPUAmpOptimWrapper, build_runner
from mmmpq.engine.search_config import search_budgets, search_reference
from mmmpq.models import QuantModel, build_model
from mmmpq.policy import Policy, Precision
from mmmpq.search.logits import build_optimizer, build_scheduler
from mmmpq.user_config import read_config, scope_of


@MODELS.register_module(name='NetOfConfigs', force=True)
class Net(BaseModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, inputs, mode='tensor'):
        return self.fc(self.conv(inputs).mean((2, 3)))


CONFIG = """
model = dict(
    type='Wrapper', detector=dict(type='mmmpq.QuantModel', base_type='TinyNet',
    quant=dict(policy='made/policy.json', hardware='made/policy.json')))
custom_hooks = [
    dict(type='mmmpq.SearchHook',
         budgets=['W3A3', dict(type='Latency', limit='3 ms', table='made/policy.json')],
         penalties=[dict(type='CostAwareLoss',
                         cost=dict(type='Latency', table='made/policy.json'))]),
    dict(type='mmmpq.SandwichHook',
         teacher=dict(config='config.py', checkpoint='made/policy.json'))]
"""


def named(config):
    search, sandwich = config.custom_hooks
    quant = config.model.detector.quant
    return {
        *(quant.policy, quant.hardware, search.budgets[1].table),
        *(search.penalties[0].cost.table, sandwich.teacher.checkpoint),
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').mkdir()
    Policy({'a': Precision(4, 4)}).save(tmp_path / 'made' / 'policy.json')
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', ['config.py', '../config.py', '{}/config.py'])
def test_from_another_folder(name, folder):
    if name == 'config.py':
        assert named(Config.fromfile(name)) == {'made/policy.json'}
        return
    os.chdir(folder / 'elsewhere')
    found = Config.fromfile(name.format(folder))
    assert named(found) == {str(folder / 'made' / 'policy.json')}
    assert found.custom_hooks[1].teacher.config == str(folder / 'config.py')


def test_each_config_has_its_own(folder):
    """Where two folders have a file of the name, and the one at work has none."""
    os.chdir(folder / 'elsewhere')
    other = folder / 'other'
    Policy({'a': Precision(2, 2)}).save(other / 'made' / 'policy.json')
    (other / 'config.py').write_text(CONFIG)
    first = Config.fromfile('../config.py')
    assert named(Config.fromfile('../other/config.py')) != named(first)


def test_what_is_nowhere_stays(folder):
    (folder / 'made' / 'policy.json').unlink()
    os.chdir(folder / 'elsewhere')
    assert named(Config.fromfile('../config.py')) == {'made/policy.json'}


class TestConfigsOfClasses:
    """Types are classes or texts with a package in front, and there may be no scope."""

    @pytest.mark.parametrize('model', ['mmmpq.QuantModel', QuantModel])
    def test_a_policy_for_a_quantized_model(self, model):
        cfg = Config(dict(model=dict(type=model, base_type=Net, quant=dict())))
        net = build_model(cfg, 'W4A4')
        assert isinstance(net, Net) and net.conv.precision == (8, 8)  # the stem

    @pytest.mark.parametrize('hook', ['SearchHook', 'mmmpq.SearchHook', SearchHook])
    @pytest.mark.parametrize('cost', ['BOPs', 'mmmpq.BOPs', BOPs])
    def test_the_search_hook_and_its_budgets(self, hook, cost):
        budget = dict(type=cost, limit='W4A4', input_shape=(3, 8, 8))
        cfg = Config(dict(custom_hooks=[dict(type=hook, budgets=[budget])]))
        shape = dict(input_shape=(3, 8, 8))
        assert search_reference(cfg) == ('BOPs', shape)
        found = search_budgets(cfg, ['W3A3'])['budgets']
        assert found[0]['limit'] == 'W3A3' and found[0]['input_shape'] == (3, 8, 8)

    @pytest.mark.parametrize('init', ['mmengine.Pretrained', PretrainedInit])
    def test_nothing_is_downloaded(self, init):
        init = dict(type=init, checkpoint='nowhere.pth')
        build_model(Config(dict(model=dict(type=Net, init_cfg=init)))).init_weights()

    @pytest.mark.parametrize('amp', ['AmpOptimWrapper', AmpOptimWrapper])
    def test_mixed_precision_on_a_cpu(self, amp, tmp_path, monkeypatch):
        monkeypatch.setattr('mmmpq.engine.launch.get_device', lambda: 'cpu')
        wrapper = dict(type=amp, loss_scale='dynamic', optimizer=dict(type='SGD', lr=1))
        model = dict(type='NetOfConfigs')
        cfg = dict(model=model, work_dir=str(tmp_path), optim_wrapper=wrapper)
        cfg.update(
            train_cfg=dict(by_epoch=True, max_epochs=1),
            train_dataloader=dict(
                dataset=[1], sampler=dict(type='DefaultSampler'), batch_size=1
            ),
            launcher='none',
            log_level='ERROR',
        )
        runner = build_runner(Config(cfg))
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        assert type(wrapper) is CPUAmpOptimWrapper

    def test_scope(self):
        mmdet = pytest.importorskip('mmdet.models')

        class Own(mmdet.RetinaNet):
            pass

        kind = dict(type='mmmpq.QuantModel', base_type=Own)
        assert scope_of(dict(model=kind)) == 'mmdet'
        assert scope_of(dict(model=dict(type=Net))) == ''
        assert scope_of(dict(model=dict(type='ResNet'))) == ''
        assert scope_of(dict(model=kind, default_scope='mmpretrain')) == 'mmpretrain'

    @pytest.mark.parametrize('kind', ['CosineAnnealingLR', CosineAnnealingLR])
    def test_a_cosine_of_the_logits_is_as_long_as_they_step(self, kind):
        logits = [nn.Parameter(torch.zeros(3))]
        optimizer = build_optimizer(dict(type='Adam', lr=0.1), logits, None)
        assert build_scheduler(dict(type=kind), optimizer, 12, 4).T_max == 12


@pytest.mark.parametrize(
    ('name', 'model'),
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'RetinaNet'),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'ImageClassifier'),
    ],
)
def test_a_config_may_be_one_of_a_toolbox_by_its_name(name, model):
    cfg = read_config(name, {'train_cfg.max_epochs': 3})
    assert (cfg.model.type, cfg.train_cfg.max_epochs) == (model, 3)


@pytest.mark.parametrize('name', ['mmdet::no/such.py', 'mmdett::a.py', 'no_such.py'])
def test_a_name_of_no_config_is_one_line(name):
    with pytest.raises(FileNotFoundError, match=f'config: found .*{name}') as error:
        read_config(name)
    assert '\n' not in str(error.value)
