"""A Runner with a trained supernet in it."""

from mmengine.config import Config
from mmengine.runner import Runner

from mmmpq.engine.batches import unwrapped
from mmmpq.engine.launch import build_runner
from mmmpq.fileio import check_file


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
        loaded = runner.load_checkpoint(checkpoint, map_location='cpu')
        loaded = loaded.get('state_dict', loaded)
        for name, value in unwrapped(runner).state_dict().items():
            if name not in loaded or loaded[name].shape != value.shape:
                raise ValueError(
                    f'{key}: {checkpoint} does not fit the model of {cfg.filename}: '
                    f'it holds no {name} of shape {tuple(value.shape)}'
                )
    return runner
