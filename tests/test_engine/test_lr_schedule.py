"""Schedules and late hooks of a base, in a training shorter than the base's."""

import logging
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmmpq.engine.lr_schedule import fit_schedule, warn_of_schedules

SHORT = "\nmodel = dict(type='mmmpq.QuantModel')\ntrain_cfg = dict(max_epochs=4)"


def short(tmp_path, base, more=''):
    file = tmp_path / 'search.py'
    file.write_text(f'_base_ = {base!r}{SHORT}\n{more}')
    return Config.fromfile(file)


@pytest.mark.parametrize(
    ('base', 'wanted'),
    [
        (  # 300 epochs, of which the schedule itself names 20
            'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
            [dict(end=1), dict(begin=1)],
        ),
        (  # 100, with no end at all
            'mmpretrain::_base_/schedules/imagenet_bs256.py',
            [dict(milestones=[1, 2, 3])],
        ),
        (  # 12; what counts iterations stays
            'mmdet::_base_/schedules/schedule_1x.py',
            [dict(end=500), dict(begin=0, end=4, milestones=[2, 3])],
        ),
    ],
)
def test_epochs_are_scaled_by_the_length_of_the_base(tmp_path, base, wanted):
    cfg = short(tmp_path, base)
    (note,) = fit_schedule(cfg)
    found = cfg.param_scheduler
    found = found if isinstance(found, list) else [found]
    for scheduler, keys in zip(found, wanted, strict=True):
        assert {k: scheduler[k] for k in keys} == keys
    assert 'To have another, paste param_scheduler = ' in note
    pasted = note.partition('paste param_scheduler = ')[2].removesuffix(
        ' and change it'
    )
    assert eval(pasted) == cfg.param_scheduler  # what is printed can be pasted
    assert fit_schedule(cfg) == []  # once


def test_hooks_that_fire_late_fire_within_the_training(tmp_path):
    cfg = short(tmp_path, 'mmdet::yolox/yolox_s_8xb8-300e_coco.py')
    notes = fit_schedule(cfg)
    warmup, cosine, constant = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, 1)
    assert (cosine.begin, cosine.end, cosine.T_max) == (1, 3, 2)
    assert (constant.begin, constant.end) == (3, 4)
    (mode,) = (h for h in cfg.custom_hooks if h.type == 'YOLOXModeSwitchHook')
    assert mode.num_last_epochs == 1
    assert any(
        'num_last_epochs was 15, of 300 epochs; it is 1, of 4' in n for n in notes
    )


def test_a_schedule_of_ones_own_is_kept_where_a_hook_is_late(tmp_path):
    own = "param_scheduler = [dict(type='MultiStepLR', milestones=[3], end=4)]\n"
    hook = "custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch=280)]"
    cfg = short(tmp_path, 'mmdet::_base_/schedules/schedule_1x.py', own + hook)
    (note,) = fit_schedule(cfg)
    assert cfg.param_scheduler[0].milestones == [3]
    assert cfg.custom_hooks[0].switch_epoch == 3
    assert 'PipelineSwitchHook.switch_epoch was 280' in note


def test_one_epoch_is_no_warm_up(tmp_path):
    cfg = short(tmp_path, 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py')
    cfg.train_cfg.max_epochs = 1
    fit_schedule(cfg)
    (cosine,) = cfg.param_scheduler
    assert (cosine.type, cosine.begin) == ('CosineAnnealingLR', 0)


def test_phases_in_iterations_are_those_of_the_epochs_they_were_made_for(tmp_path):
    base = 'mmpretrain::_base_/schedules/imagenet_bs1024_linearlr_bn_nowd.py'
    cfg = short(tmp_path, base, 'train_cfg = dict(max_epochs=6)')
    (note,) = fit_schedule(cfg)  # of 300: 5,000 iterations, then the rest
    assert [s.get('begin') for s in cfg.param_scheduler] == [0, 100]
    assert cfg.param_scheduler[0].end == 100
    assert 'made for 300 epochs, the training has 6' in note
    assert fit_schedule(cfg) == []
    own = "dict(type='PolyLR', eta_min=0, by_epoch=False, begin=50)"
    cfg = short(tmp_path, base, f'param_scheduler = [{own}]')
    assert fit_schedule(cfg) == []


def test_iterations_of_a_loop_by_iterations():
    model = dict(type='mmmpq.QuantModel')
    steps = dict(type='MultiStepLR', by_epoch=False, end=90_000, milestones=[60_000])
    train = dict(type='IterBasedTrainLoop', max_iters=900)
    cfg = Config(dict(model=model, param_scheduler=steps, train_cfg=train))
    fit_schedule(cfg)
    assert (cfg.param_scheduler.end, cfg.param_scheduler.milestones) == (900, [600])


def test_what_nobody_knows_the_length_of_is_refused_with_the_line_to_paste():
    schedule = [dict(type='LinearLR', end=20), dict(type='PolyLR', begin=20)]
    model, train = dict(type='mmmpq.QuantModel'), dict(max_epochs=4)
    cfg = Config(dict(model=model, param_scheduler=schedule, train_cfg=train))
    with pytest.raises(ValueError, match=r'param_scheduler\.1\.end='):
        fit_schedule(cfg)


def test_float_trainings_and_those_that_fit_are_left(tmp_path):
    cfg = short(tmp_path, 'mmdet::_base_/schedules/schedule_1x.py')
    cfg.train_cfg.max_epochs = 12
    before = cfg.pretty_text
    assert fit_schedule(cfg) == []
    cfg.train_cfg.max_epochs, cfg.model.type = 4, 'RetinaNet'
    assert fit_schedule(cfg) == []
    cfg.train_cfg.max_epochs, cfg.model.type = 12, 'mmmpq.QuantModel'
    assert cfg.pretty_text == before


def test_other_tools_are_told_of_a_warm_up_longer_than_the_training(caplog):
    scheduler = SimpleNamespace(by_epoch=False, end=500)
    runner = SimpleNamespace(
        cfg=Config(dict(train_cfg=dict(max_epochs=4))),
        param_schedulers=[scheduler],
        max_epochs=4,
        max_iters=96,
        logger=logging.getLogger('schedules'),
    )
    warn_of_schedules(runner)
    assert 'param_scheduler.0.end=9' in caplog.text


@pytest.mark.parametrize(
    'wrong', [dict(end='x'), dict(milestones=5), dict(begin=None), dict(T_max=[1])]
)
def test_what_is_no_schedule_is_left_to_mmengine(wrong):
    scheduler = dict(type='MultiStepLR', **wrong)
    model, train = dict(type='mmmpq.QuantModel'), dict(max_epochs=4)
    cfg = Config(dict(model=model, param_scheduler=scheduler, train_cfg=train))
    assert fit_schedule(cfg) == []
