"""A search for a chip: inside its milliseconds, and priced by `mmmpq cost`."""

import json

import pytest
from mmengine.config import Config

from mmmpq.cli import main
from mmmpq.costs import ChipEnergy, ChipLatency, profile, total_cost
from mmmpq.policy import Policy

SHAPE = (3, 8, 8)
CHIP = dict(type='ChipLatency', chip='bit_fusion', input_shape=SHAPE)


def test_a_search_stays_inside_the_time_and_energy_of_a_chip(make, hook_of, capsys):
    budgets = [
        dict(CHIP, limit=dict(of='W4A4', ratio=0.95)),
        dict(CHIP, type='ChipEnergy', limit='W4A8'),
    ]
    # At 6 channels all widths take Bit Fusion as long: one step of its 16 lanes.
    runner = make(search=dict(budgets=budgets), model=dict(width=40))
    runner.train()
    policy = Policy.load(f'{runner.work_dir}/policy.json')
    layers = profile(runner.model, SHAPE)
    costs = ChipLatency('bit_fusion'), ChipEnergy('bit_fusion')
    spent = policy.meta['budgets']
    for cost, budget in zip(costs, spent, strict=True):
        assert budget['type'] == type(cost).__name__
        found = total_cost(cost, layers, policy.layers)
        assert found == pytest.approx(budget['cost']) and found <= budget['limit']

    capsys.readouterr()
    path = f'{runner.work_dir}/search.py'
    Config(runner.cfg.to_dict()).dump(path)
    main(['cost', path, '--json'])
    printed = json.loads(capsys.readouterr().out)['budgets']
    assert [b['limit'] for b in printed] == [b['limit'] for b in spent]
    assert all(b['min'] <= b['limit'] < b['max'] for b in printed)
    main(['cost', path])
    said = capsys.readouterr().out
    assert 'budget ChipLatency' in said and ' µs; the candidates span ' in said
    assert 'budget ChipEnergy W4A8' in said
