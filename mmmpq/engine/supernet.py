"""A Runner with a supernet in it, trained or about to be measured."""

from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

from mmmpq.engine.batches import unwrapped
from mmmpq.engine.launch import build_runner
from mmmpq.fileio import check_file
from mmmpq.models.loading import load_float, load_whole


def supernet_runner(
    cfg: Config, checkpoint: str | None, key: str = '--checkpoint'
) -> Runner:
    """A Runner with the supernet of a config, to be measured, not trained.

    Args:
        cfg: Config of the training; hooks of its own, schedules and what it starts from
            are removed from it.
        checkpoint: Checkpoint of that training; None leaves the weights as built.
        key: The flag that it was given by, for the messages of errors.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It lacks a tensor of the model, or has it in another shape.
    """
    if checkpoint is not None:
        check_file(checkpoint, key)
    cfg.merge_from_dict(dict(load_from=None, resume=False, log_level='WARNING'))
    cfg.custom_hooks = []
    runner = build_runner(cfg)
    if checkpoint is not None:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, 'cpu')
        load_whole(unwrapped(runner), loaded, checkpoint, key, calibrated=False)
    return runner


def float_supernet_runner(cfg: Config, seed: int | None, trained: bool) -> Runner:
    """A Runner with the supernet of a config and the float weights that it starts from.

    Args:
        cfg: Config of a search; its hooks and schedules are removed from it.
        seed: Default: that of the config, else 0.
        trained: Whether the weights are needed.

    Raises:
        ValueError: The checkpoint is of another model; or ``trained``, and the config
            names none.
    """
    if trained and not cfg.get('load_from') and 'Pretrained' not in str(cfg.model):
        raise ValueError(
            'load_from: the config names no float checkpoint; give one with '
            '--cfg-options load_from=FILE'
        )
    for key in ('custom_hooks', 'param_scheduler', 'auto_scale_lr'):
        cfg.pop(key, None)  # nothing is trained
    cfg.resume = False
    cfg.log_level = 'ERROR'
    if seed is not None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    elif (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': 0}
    runner = build_runner(cfg)
    runner._init_model_weights()
    if cfg.get('load_from'):
        # Not by the runner, which would list every quantizer as missing.
        checkpoint = CheckpointLoader.load_checkpoint(cfg.load_from, 'cpu')
        load_float(unwrapped(runner), checkpoint, cfg.load_from)
    return runner
