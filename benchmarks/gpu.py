"""Checks and measures on a GPU, stage after stage, the most valuable first.

Called by ``gpu.sh``. Every stage is a process with a limit of its own; its records are
in its file as they come, and summary.md is written anew after each stage. One that
fails or runs out of time is noted as such, and the next one goes on.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_records import Records, Settings, processor, read, update

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 525  # seconds of all stages together


@dataclass(frozen=True)
class Stage:
    """A function ``run(records, settings, **options)`` in a process of its own.

    Attributes:
        name: As of ``--stages``.
        file: Stem of its JSON file; stages may share one.
        limit: Seconds.
        module: Where the function is.
        function: Its name.
        options: What else it is given.
    """

    name: str
    file: str
    limit: int
    module: str
    function: str = 'run'
    options: dict = field(default_factory=dict)


def steps(name: str, limit: int, *models: tuple) -> Stage:
    return Stage(name, 'step', limit, 'gpu_step', options=dict(models=models))


STAGES = (
    Stage('correct', 'correct', 80, 'gpu_correct'),
    steps(
        'step-resnet50',
        80,
        ('resnet50', 'bfloat16', 'all'),
        ('resnet50', 'bfloat16', 'graphs'),
    ),
    steps(
        'step-retinanet',
        90,
        ('retinanet_r50', 'float32', 'all'),
        ('retinanet_r50', 'bfloat16', 'short'),
    ),
    Stage('search', 'search', 120, 'gpu_search'),
    Stage('overhead', 'overhead', 60, 'gpu_overhead'),
    Stage('bandwidth', 'bandwidth', 45, 'gpu_bandwidth'),
    Stage('distributed', 'distributed', 80, 'gpu_distributed'),
    steps(
        'step-others',
        60,
        ('resnet50', 'float32', 'short'),
        ('mobilenet_v2', 'bfloat16', 'short'),
        ('faster_rcnn_r50', 'float32', 'short'),
        ('mobilenet_v2', 'bfloat16', 'graphs'),
    ),
    Stage('step-compiled', 'step', 50, 'gpu_step', 'run_compiled'),
)
# What of its records a file shows in the summary.
COLUMNS = dict(
    correct='family dtype layout candidates gradient kernels other_level out_error '
    'grad_error sums_error repeats ok error skipped',
    step='model dtype variant step candidates time_ratio forward_ratio backward_ratio '
    'memory_ratio ms memory_mib first_seconds to_compiled_float note skipped',
    search='set run seed seconds iteration_ms metric cpu_metric spent distance spread '
    'weights_differ_by loss_scale ok error',
    overhead='model dtype iteration_ms forward_ms backward_ms optimizer_ms data_ms '
    'other_ms other_share of_iteration of_other',
    bandwidth='family dtype elements shape candidates copy_gb_s forward_floor '
    'backward_floor forward_ms backward_ms forward_us backward_us forward_launches '
    'backward_launches',
    distributed='backend ranks iterations seconds spent ok error skipped',
)


def child(stage: Stage, settings: Settings, file: Path, log: Path) -> None:
    """Runs a stage, with what it prints in ``log``."""
    os.setpgid(0, 0)  # its own processes end with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    records = Records(file, stage.name)
    sys.stdout.flush()
    printed = log.open('w', buffering=1)
    for number in (1, 2):  # of those that it starts, too
        os.dup2(printed.fileno(), number)
    sys.stdout = sys.stderr = printed
    os.environ.setdefault('MPLBACKEND', 'agg')
    import torch

    torch.set_num_threads(1 if settings.device == 'cpu' else 4)
    try:
        import mmmpq  # noqa: F401

        module = importlib.import_module(stage.module)
        getattr(module, stage.function)(records, settings, **stage.options)
    except BaseException:
        traceback.print_exc()
        printed.flush()
        os._exit(1)
    printed.flush()
    os._exit(0)  # without what may hang at an interpreter's end


def run_stage(
    stage: Stage, settings: Settings, out: Path, limit: float, about: dict
) -> dict:
    """Starts a stage, waits for it, and notes how it went."""
    file, log = out / f'{stage.file}.json', settings.work / f'{stage.name}.log'
    # On a CPU a fork keeps what is imported; CUDA wants a process from scratch.
    start = 'fork' if settings.device == 'cpu' else 'spawn'
    process = multiprocessing.get_context(start).Process(
        target=child, args=(stage, settings, file, log)
    )
    began = time.time()
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:
        end(process)
    found = read(file).get(stage.name, {}).get('records', [])
    wrong = sum(record.get('ok') is False for record in found)
    status = 'ok'
    if late:
        status = f'out of time after {limit:.0f} s'
    elif process.exitcode:
        status = f'failed: exit status {process.exitcode}'
    elif wrong:
        status = f'failed: {wrong} of {len(found)} records'
    elif found and all('skipped' in record for record in found):
        status = 'skipped: ' + found[0]['skipped']
    said = log.read_text(errors='replace') if log.is_file() else ''
    result = dict(
        status=status, seconds=round(time.time() - began, 1), limit=round(limit)
    )
    if not status.startswith(('ok', 'skipped')):
        result['log'] = said.splitlines()[-25:]
        print('\n'.join(f'      {line}'[:160] for line in result['log'][-8:]))
    update(file, stage.name, **result)
    update(file, 'machine', **about)
    with (out / 'log.txt').open('a') as file:
        file.write(f'=== {stage.name}: {status}\n{said[-200_000:]}\n')
    return dict(result, records=len(found))


def end(process: multiprocessing.Process) -> None:
    """Ends what is left of a stage's processes."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
            time.sleep(0.2)
    process.kill()
    process.join()


def machine(device: str) -> dict:
    """Card, driver and versions. CUDA is left alone: stages open it."""
    found = dict(
        processor=processor(),
        python=platform.python_version(),
        torch=metadata.version('torch'),
        triton=version('triton'),
        commit=os.environ.get('COMMIT') or commit(),
        command='benchmarks/gpu.sh ' + ' '.join(sys.argv[1:]),
    )
    if device == 'cuda':
        query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total']
        found['card'] = output(*query, '--format=csv,noheader')
        code = 'import torch; print(torch.__version__, torch.version.cuda)'
        code += '; print(torch.backends.cudnn.version())'
        found['torch, CUDA, cuDNN'] = output(sys.executable, '-c', code)
    names = ('numpy', 'mmengine', 'mmcv-lite', 'mmdet', 'mmpretrain')
    found['packages'] = ', '.join(f'{name} {version(name)}' for name in names)
    return found


def commit() -> str:
    return output('git', '-C', str(ROOT), 'describe', '--always', '--dirty')


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return 'none'


def output(*command: str) -> str:
    """What a command prints, in one line; 'unknown' if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 'unknown'
    return ' '.join(done.stdout.split()) if not done.returncode else 'unknown'


def write_summary(out: Path, about: dict, results: dict[str, dict]) -> None:
    """summary.md: the machine, how every stage went, and the records as tables."""
    lines = ['# On a GPU', ''] + [f'- {key}: {value}' for key, value in about.items()]
    lines += [
        '',
        '| stage | | seconds | limit | records |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name, r in results.items():
        cells = [r['status'], r['seconds'], r['limit'], r['records']]
        lines.append(f'| {name} | ' + ' | '.join(map(str, cells)) + ' |')
    for file, columns in COLUMNS.items():
        stages = read(out / f'{file}.json')
        rows = [row for s in stages.values() for row in s.get('records', [])]
        lines += ['', f'## {file}', '', *table(rows, columns.split())] if rows else []
    (out / 'summary.md').write_text('\n'.join(lines) + '\n')


def table(rows: list[dict], columns: list[str]) -> list[str]:
    """The columns that any of the rows has."""
    columns = [c for c in columns if any(row.get(c) not in (None, '') for row in rows)]
    lines = ['| ' + ' | '.join(columns) + ' |', '| --- ' * len(columns) + '|']
    for row in rows:
        cells = [shown(row.get(column)) for column in columns]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return lines


def shown(value: object) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {number}' for key, number in value.items())
    if isinstance(value, float):
        return f'{value:.4g}' if abs(value) < 1e3 else f'{value:.0f}'
    return '' if value is None else str(value).replace('|', '/')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='benchmarks/gpu.sh', description=__doc__.split('\n\n')[0]
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        '--stages', nargs='+', choices=names, default=names, metavar='NAME',
        help=f'of {", ".join(names)} (default: all)',
    )  # fmt: skip
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument(
        '--tiny', action='store_true', help='a dry run, on the smallest sizes'
    )
    default = os.environ.get('OUT') or ROOT / 'benchmarks/results/gpu'
    parser.add_argument(
        '--out', type=Path, default=Path(default), help='(default: %(default)s)'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the stage, too
    began = time.time()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for file in {*(f'{stage.file}.json' for stage in STAGES), 'log.txt', 'summary.md'}:
        (out / file).unlink(missing_ok=True)
    about = machine(args.device)
    print('\n'.join(f'{key}: {value}' for key, value in about.items()), flush=True)
    todo = [stage for stage in STAGES if stage.name in args.stages]
    if args.device == 'cpu':
        os.environ['TRITON_INTERPRET'] = '1'  # before anything imports Triton
        import mmmpq  # noqa: F401

        for stage in todo:
            importlib.import_module(stage.module)
    work = Path(tempfile.mkdtemp(prefix='mmmpq-gpu-'))
    settings = Settings(args.device, args.tiny, work)
    results: dict[str, dict] = {}
    patience = 3 if args.device == 'cpu' else 1  # a dry run, beside other work
    try:
        for stage in todo:
            left = patience * TOTAL - (time.time() - began)
            limit = min(patience * stage.limit, left)
            if left < 15:
                results[stage.name] = dict(
                    status='not begun: no time was left', seconds=0, limit=0, records=0
                )
                continue
            print(f'{stage.name}, at most {limit:.0f} s', flush=True)
            results[stage.name] = run_stage(stage, settings, out, limit, about)
            write_summary(out, about, results)
            r = results[stage.name]
            print(f'  {r["status"]}, {r["seconds"]} s, {r["records"]} records')
    finally:
        write_summary(out, about, results)
        for left_over in out.glob('*.new'):
            left_over.unlink()
        shutil.rmtree(work, ignore_errors=True)
    good = [r['status'].startswith(('ok', 'skipped')) for r in results.values()]
    print(f'{sum(good)} of {len(good)} stages are well; {out}/summary.md')
    return 0 if all(good) else 1


if __name__ == '__main__':
    sys.exit(main())
