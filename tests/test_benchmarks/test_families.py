"""benchmarks/families.py: configs of the toolboxes on made data, and the table."""

import pytest
from mmengine.registry import DATASETS, init_default_scope


@pytest.fixture(scope='module')
def families():
    import families

    return families


@pytest.mark.parametrize(
    ('toolbox', 'name', 'shape', 'side'),
    [
        ('mmdet', 'ssd', (3, 128, 128), 128),
        ('mmdet', 'fast_rcnn', (3, 128, 128), 128),
        ('mmpretrain', 'lenet', (1, 32, 32), 32),
        ('mmpretrain', 'beit', (3, 224, 224), 224),
    ],
)
def test_a_config_on_made_data(toolbox, name, shape, side, families, tmp_path):
    config = dict(families.families(toolbox))[name]
    cfg = families.tiny(config, tmp_path, 128)
    assert families.reference(cfg, 128) == shape
    init_default_scope(toolbox)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 2
    inputs = dataset[0]['inputs']
    image = inputs[0] if isinstance(inputs, list) else inputs
    assert max(image.shape[1:]) == side
    cfg.dump(tmp_path / 'base.py')


def test_every_folder_is_a_family(families):
    for toolbox, least in (('mmpretrain', 80), ('mmdet', 110)):
        found = dict(families.families(toolbox))
        assert len(found) >= least
        assert not [n for n, path in found.items() if path.is_dir()]


def test_the_table_counts_families_whose_float_net_trains(families):
    row = dict(toolbox='mmdet', config='x.py', weights=1.0, heavy=False)
    passed = dict.fromkeys(families.STEPS, 'pass')
    rows = [
        dict(row, family='a', **passed),
        dict(row, family='b', **dict(passed, onnx='error: it has no head')),
        dict(row, family='c', build='pass', search='error: a|b', trains=True),
        dict(row, family='d', build='pass', search='error: x', trains='float: no lap'),
    ]
    rows.append(dict(row, family='e', build='pass'))
    text = families.table(rows)
    assert (
        'mmdet: 4 of 4 families build; the other steps were tried on 3, and 2' in text
    )
    assert 'pass; of 1 more the float net' in text
    assert '| c | x.py | pass | error: a/b |  |  |  |' in text
    assert '| e | x.py | pass |  |  |  |  |' in text
    assert '| d | x.py | float: no lap |' in text
