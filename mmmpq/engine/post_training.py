"""The float net of a command line, to be quantized without training."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.engine.launch import build_runner
from mmmpq.fileio import check_file
from mmmpq.models.loading import load_whole
from mmmpq.policy import Policy


def quant_of(cfg: Config, policy: str | None) -> dict[str, Any]:
    """How a config's net is quantized; the config becomes that of the float net."""
    quant: dict[str, Any] = {}
    model = cfg.model
    if 'quant' in model:
        options = model.pop('quant')
        model.type = model.pop('base_type')
        keys = ('candidates', 'quantizer', 'w_quantizer', 'a_quantizer', 'groups')
        keys += ('fixed', 'exclude', 'hardware', 'ends')
        quant = {k: options[k] for k in keys if options.get(k) is not None}
        if 'quantizer' in quant:
            both = quant.pop('quantizer')
            quant = dict(w_quantizer=both, a_quantizer=both) | quant
    if policy is not None:
        quant['policy'] = policy
        if Path(policy).is_file():  # it says itself how its net is quantized
            carried = Policy.load(policy).meta.get('quant') or {}
            quant |= {k: v for k, v in carried.items() if k.endswith('quantizer')}
    return quant


def runner_of(cfg: Config, checkpoint: str, seed: int) -> Runner:
    """A Runner with the net of a checkpoint, which is not trained.

    Args:
        cfg: Hooks of its own and schedules are removed from it.
        checkpoint: Wholly that of the net.
        seed: Of the images.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It is of another net, or the config has no images.
    """
    check_file(checkpoint, 'CHECKPOINT')
    if cfg.get('train_dataloader') is None:
        raise ValueError(
            'train_dataloader: the config has none; its images are what ranges, scores '
            'and rounding are found from'
        )
    for key in ('custom_hooks', 'param_scheduler', 'auto_scale_lr'):
        cfg.pop(key, None)
    cfg.merge_from_dict(dict(load_from=None, resume=False, log_level='WARNING'))
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    runner = build_runner(cfg)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
    load_whole(unwrapped(runner), loaded, checkpoint, 'CHECKPOINT')
    runner.known_meta = (loaded.get('meta') or {}).get('dataset_meta')
    return runner


def training_images(runner: Runner, images: int) -> list[Any]:
    """So many training images, in batches."""
    size = runner.train_dataloader.batch_size or 1
    return train_batches(runner, max(1, -(-images // size)))
