"""The recipe of docs/your_own_model.md on one config of every family of both toolboxes.

A folder of configs is a family. Its config gets made data in place of its own
(benchmarks/tiny.py) and the lines of the recipe on top; then it is searched,
fine-tuned, validated and exported by the verbs of ``mmmpq``, each in a process of its
own. Where the search fails, the float net trains on the same data: a family whose float
net does not train here is none that a recipe could be tried on.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmdet.utils
import mmpretrain.utils
import torch
from mmcv_ops import OTHER, no_download
from mmengine.runner.checkpoint import CheckpointLoader
from processes import forked
from tiny import reference, tiny

import mmmpq.cli.export
import mmmpq.cli.train
import mmmpq.export.onnx.graph
import mmmpq.visualization  # noqa: F401
from mmmpq import cli
from mmmpq.engine import results
from mmmpq.fileio import atomic_write
from mmmpq.layers import quantized_layers
from mmmpq.models import build_model
from mmmpq.policy import Policy
from mmmpq.search import Problem

TOOLBOXES = dict(mmpretrain=mmpretrain, mmdet=mmdet)
# What the rule does not find, or what is small among the configs of a folder.
CONFIG = {
    'mmdet/cascade_rpn': 'cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
    'mmdet/dcn': 'faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'mmdet/dcnv2': 'faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'mmdet/mask2former': 'mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet/pvt': 'retinanet_pvtv2-b0_fpn_1x_coco.py',
    'mmdet/rtmdet': 'rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet/ssd': 'ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'mmdet/yolox': 'yolox_tiny_8xb8-300e_coco.py',
    'mmpretrain/convmixer': 'convmixer-768-32_10xb64_in1k.py',
    'mmpretrain/eva': 'eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k.py',
    'mmpretrain/itpn': 'itpn-pixel_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py',
    'mmpretrain/mae': 'mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
    'mmpretrain/resnet': 'resnet18_8xb32_in1k.py',
    'mmpretrain/vgg': 'vgg11bn_8xb32_in1k.py',
    'mmpretrain/vision_transformer': 'vit-base-p32_64xb64_in1k.py',
    'mmpretrain/xcit': 'xcit-nano-12-p16_8xb128_in1k.py',
}
SMALL = (
    r'atto|femto|nano', r'xxs|xxsmall', r'tiny|-t\d?[-_]|5m', r'[-_][asb]0|400mf',
    r's12|-l1|r18|w18|128s|mini', r'small|[-_]s[-_]', r'r?50|11', r'base|[-_]b[-_]', '',
)  # fmt: skip
SIDE = 128  # of the images of detectors
SIDES = dict.fromkeys(('ddod', 'ddq', 'dino', 'centernet', 'v3det'), 256) | {'ssd': 320}
HEAVY, HUGE = 12e6, 400e6  # weights: one epoch of search and no ONNX; no training
SEARCH = """_base_ = './base.py'
custom_imports = dict(imports=['mmmpq'], allow_failed_imports=False)

model = dict(
    type='mmmpq.QuantModel',
    base_type='{kind}',
{backbone}    quant=dict(),
)
load_from = 'float.pth'
train_cfg = dict({length}={search})
optim_wrapper = dict(optimizer=dict(lr=0.001))
budget = dict(type='BOPs', limit='W4A4', input_shape={shape})
quick = dict(calibration=2, measure=0)
custom_hooks = [{hooks}dict(type='mmmpq.SearchHook', budgets=[budget], **quick)]
"""
FINETUNE = """_base_ = 'my_search.py'

model = dict(quant=dict(policy='work_dirs/my_search/policy.json'))
load_from = 'work_dirs/my_search/searched.pth'
train_cfg = dict({length}={finetune}, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.005))
custom_hooks = [{hooks}dict(type='mmmpq.CalibrationHook')]
"""
STEPS = ('build', 'search', 'fine-tune', 'packed', 'onnx')


def families(toolbox: str) -> Iterator[tuple[str, Path]]:
    """Folders of a toolbox's configs, with the smallest usual config of each."""
    configs = Path(TOOLBOXES[toolbox].__file__).parent / '.mim' / 'configs'
    for folder in sorted(configs.iterdir()):
        if not folder.is_dir() or folder.name in OTHER:
            continue
        names = [p.name for p in folder.glob('*.py') if p.name[0] != '_']
        chosen = CONFIG.get(f'{toolbox}/{folder.name}')
        if chosen is None and names:
            chosen = min(names, key=_order if toolbox == 'mmpretrain' else _of_r50)
        yield folder.name, folder / (chosen or 'none')


def _order(name: str) -> tuple:
    size = next(i for i, words in enumerate(SMALL) if re.search(words, name))
    unusual = bool(re.search(r'headless|deploy|\dpx|gf_|in21k|cifar|ipu', name))
    return 'in1k' not in name, unusual, size, len(name), name


def _of_r50(name: str) -> tuple:
    return name.endswith('tta.py'), 'r50' not in name, len(name), name


def family(row: dict, config: Path, folder: Path, limit: int, steps: str) -> dict:
    """What the recipe does on one family, step by step, or the first step alone."""
    if not config.is_file():
        return dict(row, trains='no config that trains')
    began = time.time()
    given = config, folder, row['family']
    row['build'] = forked(folder, 'build', limit, build, *given) or 'pass'
    if row['build'] != 'pass':
        found = forked(folder, 'base', limit, prepare, *given) or 'pass'
        return dict(row, trains=trained(folder, limit) if found == 'pass' else found)
    row.update(json.loads((folder / 'facts.json').read_text()))
    if steps == 'build' or row['weights'] >= HUGE:
        return dict(row, seconds=round(time.time() - began))
    if reason := forked(folder, 'base', limit, prepare, *given):
        return dict(row, trains=reason)
    row['search'] = verb(folder, 'search', limit, 'train', 'my_search.py')
    if row['search'] == 'pass':
        row['search'] = inside(folder / 'work_dirs' / 'my_search')
        finished(row, folder, limit)
    else:
        row['trains'] = trained(folder, limit)
    return dict(row, seconds=round(time.time() - began))


def trained(folder: Path, limit: int) -> bool | str:
    """Whether the float net trains on the same data, or why it does not."""
    found = verb(folder, 'float', limit, 'train', 'float.py')
    return found == 'pass' or found


def finished(row: dict, folder: Path, limit: int) -> None:
    """Fine-tunes and exports what a search found."""
    config, work = 'my_finetune.py', 'work_dirs/my_finetune'
    row['fine-tune'] = verb(folder, 'finetune', limit, 'train', config)
    if row['fine-tune'] != 'pass':
        return
    checkpoint = (folder / work / 'last_checkpoint').read_text().strip()
    export = ('export', config, checkpoint, '--out')
    for kind, file in (('packed', 'net.safetensors'), ('onnx', 'net.onnx')):
        if kind == 'packed' or row['weights'] < HEAVY:
            row[kind] = verb(folder, kind, limit, *export, file, '--format', kind)


def build(config: Path, folder: Path, name: str) -> None:
    """Builds the supernet and prices its budget."""
    side = SIDES.get(name, SIDE)
    cfg = tiny(config, folder / 'data', side)
    cfg.model.update(base_type=cfg.model.type, type='mmmpq.QuantModel', quant=dict())
    net = build_model(cfg)
    Problem(net, ['W4A4'], input_shape=reference(cfg, side))
    weights = sum(m.weight.numel() for m in quantized_layers(net).values())
    facts = dict(weights=weights, heavy=weights >= HEAVY)
    (folder / 'facts.json').write_text(json.dumps(facts))


def prepare(config: Path, folder: Path, name: str) -> None:
    """Writes the configs of the recipe, and a float net with random weights."""
    side = SIDES.get(name, SIDE)
    cfg = tiny(config, folder / 'data', side)
    cfg.dump(folder / 'base.py')
    torch.manual_seed(0)
    net = build_model(cfg)
    net.init_weights()
    torch.save(dict(state_dict=net.state_dict(), meta={}), folder / 'float.pth')
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    heavy = sum(p.numel() for p in net.parameters()) >= HEAVY
    backbone = cfg.model.get('backbone') or {}
    keys = dict(frozen_stages=-1) if backbone.get('frozen_stages', -1) >= 0 else {}
    line = f'    backbone=dict({_items(keys)}),\n' if keys else ''
    text = dict(
        kind=cfg.model.type,
        backbone=line,
        length=length,
        search=1 if heavy else 2,
        finetune=1,
        shape=reference(cfg, side),
        hooks='*_base_.custom_hooks, ' if cfg.get('custom_hooks') else '',
    )
    (folder / 'my_search.py').write_text(SEARCH.format(**text))
    text['hooks'] = ''
    if hooks := cfg.get('custom_hooks'):
        text['hooks'] = ', '.join(repr(dict(h)) for h in hooks) + ', '
    (folder / 'my_finetune.py').write_text(FINETUNE.format(**text))
    (folder / 'float.py').write_text(
        f"_base_ = './base.py'\ntrain_cfg = dict({length}=4)\n"
    )


def _items(keys: dict) -> str:
    return ', '.join(f'{k}={v!r}' for k, v in keys.items())


def inside(work: Path) -> str:
    """Whether the policy that a search wrote holds its budgets."""
    for each in Policy.load(work / 'policy.json').meta['budgets']:
        if each['cost'] > each['limit']:
            return f'over its budget: {each}'
    return 'pass' if (work / 'searched.pth').is_file() else 'no searched.pth'


def verb(folder: Path, title: str, limit: int, *argv: str) -> str:
    """Calls a verb of mmmpq: 'pass', or the line that it ends with."""
    return forked(folder, title, limit, cli.main, argv) or 'pass'


def trains(row: dict) -> bool:
    """Whether the family's float net trains here."""
    return row.get('trains', True) is True


def table(rows: list[dict]) -> str:
    """Markdown: what holds, then a row a family."""
    lines = ['# The recipe of your_own_model.md, family by family', '']
    for toolbox in TOOLBOXES:
        own = [r for r in rows if r['toolbox'] == toolbox and trains(r)]
        whole = [r for r in own if 'search' in r]
        none = sum(r['toolbox'] == toolbox for r in rows) - len(own)
        lines.append(
            f'- {toolbox}: {_passed(own, STEPS[:1])} of {len(own)} families build; the '
            f'other steps were tried on {len(whole)}, and {_passed(whole)} pass; of '
            f'{none} more the float net does not train here'
        )
    lines += ['', '| family | config | ' + ' | '.join(STEPS) + ' |']
    lines.append('| --- ' * (2 + len(STEPS)) + '|')
    reasons = []
    for row in rows:
        if not trains(row):
            reasons.append(f'| {row["family"]} | {row["config"]} | {row["trains"]} |')
            continue
        note = ' (one epoch)' if row.get('heavy') and 'search' in row else ''
        cells = (row['config'] + note, *(row.get(s, '') for s in STEPS))
        cells = ' | '.join(c.replace('|', '/') for c in cells)
        lines.append(f'| {row["family"]} | {cells} |')
    lines += ['', '## Whose float net does not train here', '']
    lines += ['| family | config | reason |', '| --- | --- | --- |', *reasons]
    return '\n'.join(lines) + '\n'


def _passed(rows: list[dict], steps: Sequence[str] = STEPS[:-1]) -> int:
    return sum(all(row.get(s, 'pass') == 'pass' for s in steps) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('out', type=Path, help='a line of JSON a family; goes on')
    parser.add_argument('--only', nargs='+', metavar='FAMILY', help='these, anew')
    parser.add_argument('--toolbox', nargs='+', choices=TOOLBOXES, default=TOOLBOXES)
    parser.add_argument('--steps', choices=['build', 'all'], default='all')
    parser.add_argument('--limit', type=int, default=240, help='seconds a step')
    parser.add_argument('--work-dir', type=Path, default='work_dirs/families')
    args = parser.parse_args()
    torch.hub.load_state_dict_from_url = no_download
    schemes = dict.fromkeys(('http://', 'https://'), no_download)
    CheckpointLoader._schemes.update(schemes)
    for toolbox in TOOLBOXES.values():  # once, not in every process
        toolbox.utils.register_all_modules(init_default_scope=False)
    results.write_report = lambda folder: None  # takes as long as all the rest
    rows = {}
    if args.out.is_file():
        for row in map(json.loads, args.out.read_text().splitlines()):
            rows[row['toolbox'], row['family']] = row
    for toolbox in args.toolbox:
        for name, config in families(toolbox):
            found = rows.get((toolbox, name), {})
            whole = args.steps == 'build' or 'search' in found or not trains(found)
            done = bool(found) and whole
            if name not in args.only if args.only else done:
                continue
            folder = args.work_dir.resolve() / f'{toolbox}-{name}'
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            row = dict(toolbox=toolbox, family=name, config=config.name)
            row = family(row, config, folder, args.limit, args.steps)
            rows[toolbox, name] = json.loads(json.dumps(row).replace(f'{folder}/', ''))
            text = ''.join(json.dumps(rows[k]) + '\n' for k in sorted(rows))
            atomic_write(args.out, text)
            atomic_write(args.out.with_suffix('.md'), table(list(rows.values())))
            print(json.dumps(rows[toolbox, name]), flush=True)
            for file in (*folder.rglob('*.pth'), *folder.rglob('net.*')):
                file.unlink()


if __name__ == '__main__':
    main()
