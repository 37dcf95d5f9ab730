"""A search for a chip: inside its milliseconds, and priced by `mmmpq cost`."""

import json

import pytest
from mmengine.config import Config

from mmmpq.cli import main
from mmmpq.costs import ChipEnergy, ChipLatency, profile, total_cost
from mmmpq.policy import Policy, Precision

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
        assert budget['chip'] == 'bit_fusion'
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


def test_a_net_on_a_chip(make, capsys):
    runner = make()
    path = f'{runner.work_dir}/net.py'
    Config(runner.cfg.to_dict()).dump(path)
    flags = ['--policy', 'W4A4', '--input-shape', '3', '8', '8', '--chip']
    main(['cost', path, *flags, 'bit_fusion', '--json'])
    found = json.loads(capsys.readouterr().out)
    on_chip = found['on_chip']
    assert [r['name'] for r in on_chip['layers']] == [
        r['name'] for r in found['layers']
    ]
    layers, time = profile(runner.model, SHAPE), ChipLatency('bit_fusion')
    bits = {r['name']: Precision(r['w_bits'], r['a_bits']) for r in found['layers']}
    assert on_chip['us'] == pytest.approx(total_cost(time, layers, bits))
    assert on_chip['J'] == pytest.approx(
        total_cost(ChipEnergy('bit_fusion'), layers, bits)
    )
    main(['cost', path, *flags, 'bit_fusion'])
    said = capsys.readouterr().out
    waits = sum(row['waits'] for row in on_chip['layers'])
    assert 'on bit_fusion: ' in said
    assert f' µJ; {waits} of {len(layers)} layers wait for memory' in said
    main(['cost', path, *flags, 'ne16'])
    assert ' µs; its memory is not modelled' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(['cost', path, *flags, 'tpu'])
    assert "chip: found 'tpu'; accepted are bismo" in capsys.readouterr().err
