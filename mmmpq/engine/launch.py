"""From a command line to a config that can run here: shared by the tools.

MMEngine trains on several processes and in mixed precision on accelerators only; the
functions here make the same commands work on a CPU.
"""

import argparse
import atexit
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner

from mmmpq.costs.budget_text import with_texts
from mmmpq.engine.lr_schedule import named_schedules
from mmmpq.fileio import check_file
from mmmpq.policy import Policy
from mmmpq.user_config import dicts, read_config, scope_of, type_name

USER_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    ImportError,
    EOFError,
    UnpicklingError,
    FloatingPointError,
)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """``AmpOptimWrapper`` for a CPU: bfloat16, whose range needs no loss scaling."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def embed_policy(cfg: Config) -> None:
    """Puts the content of its policy file into a config, in place.

    The config that is saved with a checkpoint then builds the net anywhere.
    """
    for part in dicts(cfg.get('model')):
        quant = part.get('quant')
        policy = quant.get('policy') if isinstance(quant, dict) else None
        if isinstance(policy, str) and Path(policy).is_file():
            quant['policy'] = Policy.load(policy).to_dict()


def search_hooks(cfg: Config) -> list[dict]:
    """The configs of a config's SearchHooks; parts of ``cfg``, not copies.

    Budgets that are texts become configs.
    """
    hooks = cfg.get('custom_hooks') or ()
    hooks = [h for h in hooks if type_name(h) == 'SearchHook']
    for hook in hooks:
        if any(isinstance(b, str) for b in hook.get('budgets') or ()):
            hook['budgets'] = with_texts(hook['budgets'], key='SearchHook.budgets')
    return hooks


def load_config(args: argparse.Namespace) -> Config:
    """Read ``args.config`` and apply the flags of :func:`add_common_arguments`.

    Those that a tool has not are at their defaults.

    Raises:
        FileNotFoundError: If there is no such config; lists near names.
    """
    cfg = read_config(args.config, args.cfg_options)
    embed_policy(cfg)
    cfg.launcher = getattr(args, 'launcher', 'none')
    if getattr(args, 'work_dir', None) is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'work_dirs/{Path(args.config).stem}'
    if scope_of(cfg) == 'mmpretrain':  # as mmpretrain's own tools do
        for split in ('train', 'val', 'test'):
            if loader := cfg.get(f'{split}_dataloader'):
                loader.setdefault('collate_fn', dict(type='default_collate'))
                loader.setdefault('pin_memory', get_device() != 'cpu')
    os.environ.setdefault('LOCAL_RANK', str(getattr(args, 'local_rank', 0)))
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config, on a CPU as well as on accelerators.

    Without an accelerator, ``launcher='pytorch'`` opens the gloo process group before
    MMEngine would ask CUDA for a device, and ``AmpOptimWrapper`` becomes
    :class:`CPUAmpOptimWrapper`.

    Raises:
        FileNotFoundError: If ``load_from`` names a local file that does not exist.
    """
    if cfg.get('load_from') is not None:
        check_file(cfg.load_from, 'load_from')
    for key in ('max_epochs', 'max_iters', 'val_interval'):
        length = (cfg.get('train_cfg') or {}).get(key, 1)
        if type(length) is not int or length < 1:
            raise ValueError(
                f'train_cfg.{key}: found {length!r}; accepted are ints from 1'
            )
    if get_device() == 'cpu':
        for wrapper in dicts(cfg.get('optim_wrapper')):
            if type_name(wrapper) == 'AmpOptimWrapper':
                wrapper['type'] = 'CPUAmpOptimWrapper'
                for key in ('loss_scale', 'dtype', 'use_fsdp'):
                    wrapper.pop(key, None)
        if cfg.launcher == 'pytorch':
            if not dist.is_initialized():
                dist.init_process_group('gloo')
            cfg.model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': False,
                'find_unused_parameters': cfg.get('find_unused_parameters', False),
                **(cfg.get('model_wrapper_cfg') or {}),
                'device_ids': None,
            }
    built = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    named_schedules(built)
    return built


def run(main: Callable[[], None]) -> None:
    """Call ``main``; end with status 2 and one line on standard error for user errors.

    These are ValueError, KeyError, OSError, ImportError (an extra is not installed),
    EOFError and UnpicklingError (a damaged file), and FloatingPointError (a loss that
    became NaN).
    ``MMMPQ_TRACEBACK=1`` shows their traceback instead.
    """
    try:
        main()
    except (*USER_ERRORS, TypeError, RuntimeError) as error:
        if not (isinstance(error, USER_ERRORS) or _of_config(error)):
            raise
        if os.environ.get('MMMPQ_TRACEBACK', '0') not in ('', '0'):
            raise
        message = ('config: ' if _of_config(error) else '') + _message(error)
        print(f'error: {message} (MMMPQ_TRACEBACK=1 shows where)', file=sys.stderr)
        sys.exit(2)
    if dist.is_initialized() and dist.get_backend() == 'gloo':
        # The threads of a gloo group sometimes abort the interpreter at its end, with
        # the group destroyed or not (torch 2.11), and torchrun reports a failure. So:
        # what others have registered for the end, then leave without the rest.
        dist.barrier()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _message(error: Exception) -> str:
    """One line; what Python and libraries say in a word is put into a sentence."""
    message = str(error)
    if isinstance(error, KeyError) and error.args:
        # str() of it is the repr of its message, or of the key alone
        message = str(error.args[0])
        if not re.search(r'\s', message):
            message = f'found no key {error.args[0]!r}, which is needed'
    elif isinstance(error, OSError) and error.filename is not None:
        message = f'{error.filename}: {error.strerror}'
    return ' '.join(message.split()) or type(error).__name__


def _of_config(error: Exception) -> bool:
    """Whether MMEngine itself refuses what a config says: a key that a class lacks."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get('__name__') in (
        'mmengine.registry.build_functions',
        'mmengine.runner.runner',
    )
