"""A search on several processes, as tools/dist_train.sh starts them, to its end.

NCCL with one rank, and gloo with two ranks on the one device. Some iterations of the
digits, without a float net to start from.
"""

import json
import os
import socket
import sys

from gpu_records import Records, Settings, last_line
from gpu_search import log_of, short
from processes import process

from mmmpq.policy import Policy

# torch's launcher gives every rank a GPU of its own; here all have the first one.
SHARED_GPU = ['bash', '-c', 'LOCAL_RANK=0 exec "$0" "$@"', sys.executable]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def search(backend: str, ranks: int, settings: Settings) -> dict:
    """The record of one search."""
    title = f'{backend}-{ranks}'
    folder = settings.work / 'distributed'
    data = settings.work / 'search/digits'  # if that stage has run
    folder.mkdir(exist_ok=True)
    if not data.is_dir():
        converter = 'tools/dataset_converters/digits.py'
        process(folder, 'data', 1, converter, '--out', str(data))
    options = {
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.dataset.indices': 200 if settings.tiny else 1000,
        'val_dataloader.dataset.indices': 100,
        'train_dataloader.dataset.data_root': f'{data}/',
        'val_dataloader.dataset.data_root': f'{data}/',
        'env_cfg.dist_cfg.backend': backend,
        'default_hooks.logger.interval': 1,
        'load_from': None,
        **short(settings.tiny),
    }
    took = process(
        folder,
        title,
        1 if settings.device == 'cpu' else 4,
        *('-m', 'torch.distributed.run', '--master-addr', '127.0.0.1'),
        *('--master-port', str(free_port()), f'--nproc-per-node={ranks}'),
        *('--no-python', *SHARED_GPU, 'tools/train.py'),
        *('configs/bpnas/resnet_digits.py', '--launcher', 'pytorch'),
        *('--work-dir', str(folder / title), '--cfg-options'),
        *(f'{key}={value}' for key, value in options.items()),
    )
    policy = Policy.load(folder / title / 'policy.json')
    budget = policy.meta['budgets'][0]
    lines = (folder / title / 'search_history.jsonl').read_text().splitlines()
    return dict(
        backend=backend,
        ranks=ranks,
        seconds=round(took['seconds'], 1),
        iterations=json.loads(lines[-1])['iter'] + 1,
        spent=round(budget['cost'] / budget['limit'], 4),
        ok=budget['cost'] <= budget['limit'],
    )


def run(records: Records, settings: Settings) -> None:
    """The stage."""
    os.environ['MMMPQ_TRACEBACK'] = '1'
    for backend, ranks in (('nccl', 1), ('gloo', 2)):
        if backend == 'nccl' and settings.device == 'cpu':
            records.add(skipped='nccl: needs CUDA')
            continue
        try:
            records.add(**search(backend, ranks, settings))
        except (ValueError, OSError) as error:
            error_line, log = last_line(error), log_of(error)
            records.add(
                backend=backend, ranks=ranks, ok=False, error=error_line, log=log
            )
