"""A packed file alone feeds the toolboxes' own functions with an image."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmmpq.export.packed import load_packed, save_packed
from mmmpq.export.packed.config import to_json
from mmmpq.export.packed.file import digest_of_all

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def of_file(name, **changes):
    cfg = Config.fromfile(f'configs/bpnas/{name}_finetune.py')
    cfg.merge_from_dict({'model.quant.policy': 'W8A8', **changes})
    return cfg


def test_a_detector_of_mmdet(tmp_path, settled):
    from mmdet.apis import inference_detector, init_detector

    cfg = of_file('retinanet_shapes')
    net = settled(cfg, 64)
    known = dict(classes=('square', 'disc', 'triangle'))
    file = save_packed(net, tmp_path / 'x.safetensors', cfg, dataset_meta=known)
    loaded = load_packed(file)
    assert loaded.dataset_meta['classes'] == known['classes']
    found = inference_detector(loaded, IMAGE).pred_instances
    net.cfg = cfg
    wanted = inference_detector(net, IMAGE).pred_instances
    assert len(wanted) and torch.equal(found.bboxes, wanted.bboxes)
    assert torch.equal(found.scores, wanted.scores)
    again = init_detector(loaded.cfg, str(file), palette='random', device='cpu')
    assert torch.equal(
        inference_detector(again, IMAGE).pred_instances.scores, found.scores
    )


def test_a_classifier_of_mmpretrain(tmp_path, settled):
    from mmpretrain import ImageClassificationInferencer

    cfg = of_file('resnet_digits')
    net = settled(cfg, 32)
    file = save_packed(net, tmp_path / 'x.safetensors', cfg)
    (found,) = ImageClassificationInferencer(load_packed(file))(IMAGE)
    net._config = cfg
    (wanted,) = ImageClassificationInferencer(net)(IMAGE)
    assert np.array_equal(found['pred_scores'], wanted['pred_scores'])


def test_the_pipeline_lies_inside_wrappers_of_datasets(tmp_path, classifier, settled):
    cfg = classifier()
    steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    inside = dict(type='ConcatDataset', datasets=[dict(type='A', pipeline=steps)])
    cfg.test_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=inside))
    loaded = load_packed(save_packed(settled(cfg), tmp_path / 'x.safetensors', cfg))
    assert loaded.cfg.test_dataloader.dataset.pipeline == steps
    file = save_packed(loaded, tmp_path / 'y.safetensors', loaded.cfg)  # as it is
    assert load_packed(file).cfg.model.quant.policy.layers


@pytest.mark.parametrize(
    'pipeline',
    [
        [dict(type='os.system', command='ls')],
        [dict(type='LoadImageFromFile', to='/etc/passwd')],
        [dict(type='LoadImageFromFile', _scope_='antigravity')],
    ],
)
def test_a_strangers_pipeline_names_registered_types_alone(
    tmp_path, classifier, settled, pipeline
):
    from safetensors import safe_open
    from safetensors.torch import save_file

    cfg = classifier()
    file = save_packed(settled(cfg), tmp_path / 'x.safetensors', cfg)
    with safe_open(file, 'pt') as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    config = {**json.loads(metadata['config']), 'test_pipeline': pipeline}
    metadata['config'] = to_json(config)
    del metadata['digest']
    metadata['digest'] = digest_of_all(metadata, tensors['index'])
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=r'x\.safetensors: found|test_pipeline'):
        load_packed(file)
