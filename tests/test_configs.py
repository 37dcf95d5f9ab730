"""Every config builds; those on public data run on small sets of the same format."""

import copy
import os
import pickle
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import mmdet
import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
import yaml
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.fileio import dump, load
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import CIFAR10

from mmmpq.layers import MixedLayer, QuantLayer, quantized_layers
from mmmpq.subnets import SubnetSpace

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
NAMES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
TWINS = [
    name
    for name in NAMES
    if name.endswith(('_finetune.py', '_scratch.py', '_subnet.py'))
]

# What makes a run short, as --cfg-options. Nothing else of a config is changed.
DATA = [
    f'{split}_dataloader.{key}'
    for split in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
COCO = [
    *DATA,
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    'test_dataloader.dataset.pipeline.1.scale=(64,64)',
]
IMAGENET = [
    *DATA,
    'train_cfg.max_epochs=1',
    'train_dataloader.batch_size=4',
    'train_dataloader.dataset.pipeline.1.scale=32',
    'val_dataloader.dataset.pipeline.1.scale=36',
    'val_dataloader.dataset.pipeline.2.crop_size=32',
    'test_dataloader.dataset.pipeline.1.scale=36',
    'test_dataloader.dataset.pipeline.2.crop_size=32',
]
# The smallest inputs that Inception-V3 takes
INCEPTION = [option.replace('=32', '=75').replace('=36', '=80') for option in IMAGENET]
# Enough pixels for every BatchNorm of a deep net
DEEP = [option.replace('=32', '=64').replace('=36', '=72') for option in IMAGENET]
DEEP.append('train_dataloader.batch_size=5')
# A quarter of the channels: a sixteenth of the weights to make, save and load
NARROW_BACKBONE = ['model.backbone.base_channels=16', 'model.backbone.stem_channels=16']
NARROW_RETINANET = [
    *NARROW_BACKBONE,
    'model.neck.in_channels=[64,128,256,512]',
    'model.neck.out_channels=64',
    'model.bbox_head.in_channels=64',
    'model.bbox_head.feat_channels=64',
]
NARROW_RESNET18 = [*NARROW_BACKBONE, 'model.head.in_channels=128']
NARROW_RESNET50 = [*NARROW_BACKBONE, 'model.head.in_channels=512']
BUNDLED = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.indices=40',
    'val_dataloader.dataset.indices=8',
    'test_dataloader.dataset.indices=8',
]
CIFAR = [*DATA, 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=8']
OURS = ROOT / 'tools'
# The keys of `quant` that a search alone has.
SEARCHED = {'candidates', 'groups', 'relaxation', 'mixing', 'own_weights', 'ends'}
SEARCH = ['load_from=None', 'custom_hooks.0.calibration=1', 'custom_hooks.0.measure=0']


def budget(side):
    return f'custom_hooks.0.budgets.0.input_shape=(3,{side},{side})'


def own_tools(package):
    return Path(package.__file__).parent / '.mim' / 'tools'


def search_of(twin):
    return re.sub('_(finetune|scratch|subnet)', '', twin)


# --- as they are ----------------------------------------------------------------------


@cache
def parsed(name):
    """A config that is only read."""
    return Config.fromfile(CONFIGS / name)


@pytest.mark.parametrize('name', NAMES)
def test_config_builds_its_model(name):
    cfg = copy.deepcopy(parsed(name))
    init_default_scope(cfg.default_scope)
    if name in TWINS:
        cfg.model.quant.policy = 'W4A4'  # its own is written by a search
        if 'architecture' in cfg.model.backbone:
            cfg.model.backbone.architecture = 'largest'
    layers = quantized_layers(MODELS.build(cfg.model)).values()
    mixed = sum(isinstance(layer, MixedLayer) for layer in layers)
    fixed = sum(isinstance(layer, QuantLayer) for layer in layers)
    if name.startswith('float/'):
        assert not layers
    elif name in TWINS:
        assert fixed and not mixed
    else:
        assert mixed
        # Stem and prediction layers have a few widths of their own, are at 8/8, or
        # float as published.
        ends = any(getattr(layer, 'in_uniform', None) for layer in layers)
        assert ends or fixed or cfg.model.quant.get('exclude')


@pytest.mark.parametrize('name', TWINS)
def test_finetune_twin_takes_what_its_search_writes(name):
    twin, search = (copy.deepcopy(parsed(n)) for n in (name, search_of(name)))
    run = search.get('work_dir') or f'work_dirs/{Path(search.filename).stem}'
    quant = twin.model.pop('quant'), search.model.pop('quant')
    assert quant[0].pop('policy') == f'{run}/policy.json'
    weights = {
        '_finetune.py': f'{run}/searched.pth',
        '_scratch.py': None,
        '_subnet.py': f'{run}/epoch_{search.train_cfg.get("max_epochs")}.pth',
    }
    assert twin.load_from == weights[name[name.rindex('_') :]]
    assert quant[0] == {key: quant[1][key] for key in quant[0]}
    assert set(quant[1]) - set(quant[0]) <= SEARCHED
    if twin.model.backbone.type == search.model.backbone.type:  # not elastic
        assert twin.model == search.model
    assert twin.train_dataloader == search.train_dataloader


def parse(file):
    """A YAML file, by PyYAML's compiled parser where it has one."""
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    return yaml.load(file.read_text(), loader)


def test_public_checkpoints_are_those_of_the_model_zoos():
    zoo = {}  # by path: onedl-mmpretrain's files lie on a host of its own
    for package in (mmdet, mmpretrain, mmseg):
        mim = Path(package.__file__).parent / '.mim'
        for kind in ('retinanet', 'faster_rcnn', 'resnet', 'fcn'):
            files = (mim / 'configs' / kind).glob('metafile.y*ml')
            for model in (m for file in files for m in parse(file)['Models']):
                zoo[urlsplit(model.get('Weights') or '').path] = model['Config']
    for name in NAMES:
        cfg = parsed(name)
        if 'openmmlab.com' in (cfg.load_from or ''):
            base = zoo[urlsplit(cfg.load_from).path].removeprefix('configs/')
            assert f'::{base}' in cfg.text  # its own, and that of its bases


def test_metafiles_list_the_configs():
    index = parse(ROOT / 'model-index.yml')
    listed = []
    for metafile in index['Import']:
        content = parse(ROOT / metafile)
        collections = {collection['Name'] for collection in content['Collections']}
        for model in content['Models']:
            assert model['In Collection'] in collections
            cfg = parsed(model['Config'].removeprefix('configs/'))
            key = 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'
            kind = dict(max_epochs='Epochs', max_iters='Iterations')[key]
            assert model['Metadata'][kind] == cfg.train_cfg[key]
            listed.append(model['Config'].removeprefix('configs/'))
    public = [n for n in NAMES if not n.startswith('float/')]
    own = ('digits', 'shapes', 'fashion', 'stamps', 'crops')
    bundled = [n for n in public if any(name in n for name in own)]
    assert sorted(listed) == sorted(set(public) - set(bundled))


@pytest.mark.parametrize('name', NAMES)
def test_loaders_suit_mmpretrains_own_tools(name):
    """They keep workers alive unless told otherwise, which none cannot be."""
    cfg = parsed(name)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        if cfg.default_scope == 'mmpretrain' and loader.num_workers == 0:
            assert loader.persistent_workers is False


# --- on small data --------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with small sets where the configs expect the public ones."""
    folder = tmp_path_factory.mktemp('configs')
    random = np.random.default_rng(0)
    write_coco(folder / 'data/coco', random)
    write_imagenet(folder / 'data/imagenet', random)
    write_cifar(folder / 'data/cifar10/cifar-10-batches-py', random)
    for name, counts in (('digits', []), ('shapes', ['--train', '40', '--val', '8'])):
        argv = [f'{name}.py', '--out', str(folder / 'data' / name), *counts]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', argv)
            runpy.run_path(
                str(OURS / 'dataset_converters' / argv[0]), run_name='__main__'
            )
    return folder


def write_coco(root, random):
    """Bright boxes on noise, two categories, in COCO's layout and its 80 names."""
    (root / 'annotations').mkdir(parents=True)
    names = CocoDataset.METAINFO['classes']
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    for split, count in (('train2017', 10), ('val2017', 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            image = random.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            x, y, side = *random.integers(0, 30, 2).tolist(), 30
            image[y : y + side, x : x + side, i % 2] = 255
            file = f'{i:012}.jpg'
            cv2.imwrite(str(root / split / file), image)
            images.append(dict(id=i, file_name=file, width=64, height=64))
            box = dict(bbox=[x, y, side, side], area=side**2, iscrowd=0)
            annotations.append(dict(box, id=i + 1, image_id=i, category_id=1 + i % 2))
        dump(
            dict(images=images, annotations=annotations, categories=categories),
            root / 'annotations' / f'instances_{split}.json',
        )


def write_imagenet(root, random):
    (root / 'meta').mkdir(parents=True)
    for split, count in (('train', 10), ('val', 2)):
        lines = []
        for i in range(count):
            file = f'n{i % 2:08}/{split}_{i}.JPEG'
            (root / split / file).parent.mkdir(parents=True, exist_ok=True)
            image = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(root / split / file), image)
            lines.append(f'{file} {i % 2}\n')
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))


def write_cifar(root, random):
    root.mkdir(parents=True)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        data = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = dict(data=data, labels=[0, 1, 2, 3], batch_label=name)
        (root / name).write_bytes(pickle.dumps(batch))


@pytest.fixture
def tool(folder, monkeypatch):
    """Runs a tool as its command line does, in the folder of the data."""
    monkeypatch.chdir(folder)
    for split in ('train_list', 'test_list'):  # the names without their checksums
        files = [[name, None] for name, _ in getattr(CIFAR10, split)]
        monkeypatch.setattr(CIFAR10, split, files)

    def run(path, config, *args):
        monkeypatch.setattr(sys, 'argv', [str(path), str(CONFIGS / config), *args])
        runpy.run_path(str(path), run_name='__main__')

    return run


def in_own_process(path, config, *args):
    """As ``tool``, where nothing but the config can have imported mmmpq."""
    done = subprocess.run(
        [sys.executable, str(path), str(CONFIGS / config), *args],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def search_and_finetune(tools, tool, name, options, search, first=None):
    """Search, training by the twin, test: all with the scripts in ``tools``.

    ``tool`` runs them, ``first`` (default: ``tool``) the search.
    """
    (first or tool)(
        *[tools / 'train.py', f'{name}.py', '--cfg-options', *options],
        *[*SEARCH, *search],
    )
    assert (folder_of(f'{name}.py') / 'policy.json').is_file()
    twin = next(t for t in TWINS if search_of(t) == f'{name}.py')
    tool(tools / 'train.py', twin, '--cfg-options', *options)
    tuned = folder_of(twin)
    checkpoint = str(tuned / 'epoch_1.pth')
    tool(tools / 'test.py', twin, checkpoint, '--cfg-options', *options)
    # the last folder by time is the test's; its one JSON file holds the metrics
    return load(max(tuned.glob('2*/*.json')))


def folder_of(name):
    own = parsed(name).get('work_dir')
    return Path(own or f'work_dirs/{Path(name).stem}')


@pytest.mark.parametrize('name', NAMES)
def test_work_dirs_are_named_by_one_rule(name):
    """work_dirs/<config>, as the toolboxes' tools have it, for float nets and BP-NAS;
    what other methods find of the same nets is in a folder of the method's name."""
    method, stem = Path(name).parent.name, Path(name).stem
    inside = '' if method in ('bpnas', 'float') else f'{method}/'
    assert folder_of(name) == Path(f'work_dirs/{inside}{stem}')


def test_retinanet_on_coco(tool, no_report):
    metrics = search_and_finetune(
        *[OURS, tool, 'bpnas/retinanet_r50_coco'],
        *[[*COCO, 'model.test_cfg.score_thr=0.0'], [budget(64)]],
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1


def test_resnet50_on_imagenet(tool, no_report):
    metrics = search_and_finetune(
        OURS, tool, 'bpnas/resnet50_imagenet', IMAGENET, [budget(32)]
    )
    assert metrics['accuracy/top1'] in (0, 50, 100)


def test_resnet20_on_cifar10(tool):
    float_net = 'resnet20_cifar10_float'
    tool(OURS / 'train.py', f'float/{float_net}.py', '--cfg-options', *CIFAR)
    metrics = search_and_finetune(
        *[OURS, tool, 'bpnas/resnet20_cifar10', CIFAR],
        # its own budget; the float net of one epoch; upgrades are measured
        [f'load_from=work_dirs/{float_net}/epoch_1.pth', 'custom_hooks.0.measure=1'],
    )
    assert metrics['accuracy/top1'] in (0, 25, 50, 75, 100)
    assert Path('work_dirs/resnet20_cifar10/report/index.html').is_file()
    policy = load('work_dirs/resnet20_cifar10/policy.json')
    found = policy['meta']['budgets'][0]
    assert found['cost'] <= found['limit']


# What each config of EdMIPS and DNAS runs with: its data, and what its search is given.
INPUT = 'custom_hooks.0.penalties.0.cost.input_shape=(3,{0},{0})'
SCORES = 'model.test_cfg.score_thr=0.0'
SMALL_RUNS = {
    'edmips/resnet18_imagenet': (
        [*IMAGENET, *NARROW_RESNET18],
        [INPUT.format(32)],
    ),
    'edmips/resnet50_imagenet': (
        [*IMAGENET, *NARROW_RESNET50],
        [INPUT.format(32)],
    ),
    'edmips/inception-v3_imagenet': (INCEPTION, [INPUT.format(75)]),
    'edmips/retinanet_r50_coco': (
        [*COCO, SCORES, *NARROW_RETINANET],
        [INPUT.format(64)],
    ),
    'edmips/resnet_digits': (BUNDLED, []),
    'edmips/retinanet_shapes': (BUNDLED, []),
    'dnas/resnet18_imagenet_size': (
        [*IMAGENET, *NARROW_RESNET18],
        [INPUT.format(32)],
    ),
    'dnas/resnet18_imagenet_compute': (
        [*IMAGENET, *NARROW_RESNET18],
        [INPUT.format(32)],
    ),
    'dnas/resnet20_cifar10': (CIFAR, []),
    'dnas/retinanet_r50_coco': (
        [*COCO, SCORES, *NARROW_RETINANET],
        [INPUT.format(64)],
    ),
    'dnas/resnet_digits': (BUNDLED, []),
    'dnas/retinanet_shapes': (BUNDLED, []),
}


def test_small_runs_are_all_of_edmips_and_dnas():
    searches = {n.removesuffix('.py') for n in set(NAMES) - set(TWINS)}
    assert set(SMALL_RUNS) == {
        n for n in searches if n.startswith(('edmips/', 'dnas/'))
    }


@pytest.mark.parametrize('name', SMALL_RUNS)
def test_edmips_and_dnas_by_their_penalty_alone(tool, no_report, name):
    data, search = SMALL_RUNS[name]
    metrics = search_and_finetune(OURS, tool, name, data, search)
    assert metrics
    policy = load(folder_of(f'{name}.py') / 'policy.json')
    assert not policy['meta']['budgets']
    quant = Config.fromfile(CONFIGS / f'{name}.py').model.quant
    assert {tuple(p) for p in policy['layers'].values()} <= set(
        map(tuple, quant.candidates)
    )


@pytest.mark.parametrize('name', ['edmips/resnet_digits', 'dnas/resnet_digits'])
def test_edmips_and_dnas_under_a_budget(tool, no_report, name):
    budgets = "[dict(type='BOPs', limit='W3A3', input_shape=(3, 16, 16))]"
    Path('under_a_budget.py').write_text(
        f"_base_ = '{CONFIGS / name}.py'\n"
        f'custom_hooks = [dict(_base_.custom_hooks[0], budgets={budgets})]\n'
    )
    config = str(Path('under_a_budget.py').absolute())
    work_dir = ['--work-dir', f'work_dirs/budget/{name}']
    tool(OURS / 'train.py', config, *work_dir, '--cfg-options', *BUNDLED, *SEARCH)
    found = load(f'work_dirs/budget/{name}/policy.json')['meta']['budgets'][0]
    assert found['cost'] <= found['limit']


@pytest.mark.parametrize('name', ['resnet_digits', 'retinanet_shapes'])
def test_bits_alone_from_float_to_the_net_of_a_policy(tool, name):
    tool(OURS / 'train.py', f'float/{name}_float.py', '--cfg-options', *BUNDLED)
    weights = f'work_dirs/{name}_float/epoch_1.pth'
    tool(
        *[OURS / 'train.py', f'qfa/{name}.py', '--cfg-options', *BUNDLED],
        *[f'load_from={weights}', f'custom_hooks.0.teacher.checkpoint={weights}'],
        *['custom_hooks.0.random=1', 'custom_hooks.0.calibration=1'],
    )
    run = folder_of(f'qfa/{name}.py')
    cfg = Config.fromfile(CONFIGS / f'qfa/{name}.py')
    init_default_scope(cfg.default_scope)
    space = SubnetSpace(MODELS.build(cfg.model))
    policy = space.policy(space.sample(torch.Generator().manual_seed(0)))
    policy.save(run / 'policy.json')
    twin = f'qfa/{name}_subnet.py'
    few = ['custom_hooks.0.batches=1', *BUNDLED]
    tool(OURS / 'test.py', twin, str(run / 'epoch_1.pth'), '--cfg-options', *few)
    metrics = load(max(folder_of(twin).glob('2*/*.json')))
    assert metrics and all(-1 <= v <= 100 for v in metrics.values())


# A float net, the supernets that follow it and the net of a policy of the last one; and
# the sizes of its images.
ELASTIC = {
    'mobilenetv3_imagenet': (DEEP, ['_phase0', '_phase1'], [56, 64]),
    'mobilenetv3_digits': (BUNDLED, [''], [12, 16]),
}


@pytest.mark.parametrize('name', ELASTIC)
def test_elastic_nets_from_float_to_the_net_of_a_policy(tool, name):
    data, phases, sizes = ELASTIC[name]
    teacher = f'float/{name}_float.py'
    tool(OURS / 'train.py', teacher, '--cfg-options', *data, 'load_from=None')
    float_net = weights = folder_of(teacher) / 'epoch_1.pth'
    data = [*data, f'data_preprocessor.sizes={sizes}'.replace(' ', '')]
    hook = ['custom_hooks.0.random=1', 'custom_hooks.0.calibration=1']
    if data[: len(BUNDLED)] == BUNDLED:
        hook += [
            f'custom_hooks.0.teacher.config={CONFIGS / teacher}',
            f'custom_hooks.0.teacher.checkpoint={float_net}',
        ]
    else:  # a deep net has no statistics to teach with after three steps
        hook += ['custom_hooks.0.teacher=None']
    for phase in phases:
        supernet = f'qfa/{name}{phase}.py'
        start = f'load_from={weights}'
        tool(OURS / 'train.py', supernet, '--cfg-options', *data, *hook, start)
        weights = folder_of(supernet) / 'epoch_1.pth'
    cfg = Config.fromfile(CONFIGS / supernet)
    cfg.data_preprocessor.sizes = sizes
    model = dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    space = SubnetSpace(MODELS.build(model))
    policy = space.policy(space.sample(torch.Generator().manual_seed(0)))
    policy.save(folder_of(supernet) / 'policy.json')
    twin = supernet.replace('.py', '_subnet.py')
    tool(OURS / 'test.py', twin, str(weights), '--cfg-options', *data)
    tool(OURS / 'train.py', twin, '--cfg-options', *data, f'load_from={weights}')
    assert 0 <= load(max(folder_of(twin).glob('2*/*.json')))['accuracy/top1'] <= 100


# --- with the toolboxes' own tools ----------------------------------------------------


def test_faster_rcnn_with_mmdets_own_tools(tool, no_report):
    small = ['model.backbone.depth=18', 'model.neck.in_channels=[64,128,256,512]']
    heads = 'rpn_head.{0}', 'rpn_head.feat_{1}', 'roi_head.bbox_roi_extractor.out_{1}'
    heads += 'roi_head.bbox_head.{0}', 'roi_head.bbox_head.fc_out_{1}', 'neck.out_{1}'
    narrow = [f'model.{h}=64'.format('in_channels', 'channels') for h in heads]
    metrics = search_and_finetune(
        *[own_tools(mmdet), tool, 'bpnas/faster-rcnn_r50_coco'],
        [*COCO, *small, *narrow, 'model.test_cfg.rcnn.score_thr=0.0'],
        [budget(64), 'custom_hooks.0.budgets.0.proposals=10'],
        first=in_own_process,
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1


def test_resnet18_with_mmpretrains_own_tools(tool, no_report):
    metrics = search_and_finetune(
        *[
            own_tools(mmpretrain),
            tool,
            'bpnas/resnet18_imagenet',
            IMAGENET,
            [budget(32)],
        ],
        first=in_own_process,
    )
    assert metrics['accuracy/top1'] in (0, 50, 100)
