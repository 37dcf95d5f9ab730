"""Is the search worth it? Every method, budget and seed, with equal fine-tuning.

A run searches (or takes a baseline's policy), fine-tunes what was found and tests it,
with the tools of this repository in processes of their own. All methods choose from the
candidates of configs/bpnas, in its groups, under the same budget, with the same
quantizer; the schedule of the fine-tuning is that of the configs/bpnas twin. One JSON
file per run under --work-dir: what is there already is not run again, nor with --keep
what --out has a line for.
"""

import argparse
import fcntl
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, init_default_scope
from processes import ROOT, last_metric, process
from quality_report import BASELINES, METHODS, read_csv, write_results
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import mmmpq  # noqa: F401
from mmmpq.costs import BOPs, Budget, profile, total_cost
from mmmpq.costs.budget_text import budget_cfgs, file_name
from mmmpq.engine.launch import run
from mmmpq.engine.search_config import search_budgets
from mmmpq.fileio import atomic_write, check_file
from mmmpq.policy import Policy, Precision
from mmmpq.search import Problem
from mmmpq.version import __version__

ONE_BY_ONE = threading.Lock()  # mmengine reads a config by way of sys.modules
# Name -> config in configs/bpnas, metric.
SETS = {
    'digits': ('resnet_digits', 'accuracy/top1'),
    'shapes': ('retinanet_shapes', 'coco/bbox_mAP'),
    'fashion': ('resnet20_fashion', 'accuracy/top1'),
    'stamps': ('retinanet_stamps', 'coco/bbox_mAP'),
}
# The sets whose configs of EdMIPS and DNAS say what these methods are on others.
LIKE = {'fashion': 'resnet_digits', 'stamps': 'retinanet_shapes'}
EPILOG = """examples
  benchmarks/search_quality.py --sets digits --methods bpnas_composite uniform
  benchmarks/search_quality.py --jobs 2                       (all of it, hours)
  benchmarks/search_quality.py --jobs 2 --keep                (what the results lack)
  benchmarks/search_quality.py --jobs 0                       (table and plot alone)

bpnas_* is configs/bpnas with that mixing; bpnas_paper the config of that name, from a
float net of its own. edmips and dnas take penalty, relaxation,
mixing, weights and steps of their configs. EdMIPS's logits are joint here, as the
candidates are no full grid. bpnas_fisher starts its logits from Fisher scores.
uniform_long is fine-tuned for as many epochs as a search and its fine-tuning take;
*_twice are first trained at their fixed bits for the time that a search takes, with its
schedule, then fine-tuned like what a search found. by_hand is the dearest uniform net
inside the budget whose prediction layers have 4/4 and whose stem has 8/8.
"""


@dataclass(frozen=True)
class Run:
    """One line of the results."""

    set: str
    method: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        return f'{self.set}-{self.method}-{file_name(self.budget)}-{self.seed}'


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument(
        '--methods',
        nargs='+',
        choices=METHODS,
        default=[m for m in METHODS if m not in ('bpnas_sampled', 'bpnas_paper')],
        help='(default: all but bpnas_sampled and bpnas_paper, which shapes alone has)',
    )
    parser.add_argument(
        '--budgets',
        nargs='+',
        default=['W2A2', 'W3A3', 'W4A4'],
        help='W3A3, 0.8*W3A3, WeightBytes:W3A3 and the like (default: W2A2 W3A3 W4A4)',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--floats',
        type=int,
        default=1,
        help="float nets; with 5, seed s starts from number s %% 5, in <config>'s "
        'work_dirs/…_float_0 to …_float_4 (default: 1, work_dirs/…_float)',
    )
    parser.add_argument(
        '--reference',
        choices=METHODS,
        default='bpnas_composite',
        help='the method that the others are compared with in pairs '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=int, default=1, help='of each process (default: 1)'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='runs side by side (default: 1; 0: none, only write the results)',
    )
    parser.add_argument(
        '--from-float',
        action='store_true',
        help='fine-tune every policy from the float checkpoint; by default a search '
        'goes on from its own weights',
    )
    parser.add_argument(
        '--search-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override keys of every search config',
    )
    parser.add_argument(
        '--finetune-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override keys of every fine-tuning config',
    )
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/search_quality'
    )
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'benchmarks/results/search_quality'
    )
    parser.add_argument(
        '--keep',
        action='store_true',
        help="the lines of --out's runs.csv stay, and count as run; by default the "
        'results are those of --work-dir alone',
    )
    args = parser.parse_args(argv)
    args.work_dir, args.out = args.work_dir.resolve(), args.out.resolve()
    for budget in args.budgets:
        for each in budget_cfgs(budget, 'BOPs', {}):
            Budget.build(each)
    if args.jobs < 0 or args.threads < 1 or args.floats < 1:
        parser.error('--jobs: at least 0; --threads and --floats: at least 1')
    return args


# --- configs --------------------------------------------------------------------------


def config_of(run: Run, twin: str = '') -> Path:
    paper = '_paper' if run.method == 'bpnas_paper' else ''
    return ROOT / f'configs/bpnas/{SETS[run.set][0]}{paper}{twin}.py'


def search_config(run: Run) -> Config:
    """That of configs/bpnas, with what makes up the method in it."""
    cfg = Config.fromfile(config_of(run))
    quant, hook = cfg.model.quant, cfg.custom_hooks[0]
    shape = hook.budgets[0].input_shape
    hook.budgets = search_budgets(cfg, [run.budget])['budgets']
    if run.method == 'bpnas_fisher':
        hook.fisher = 8
    elif run.method != 'bpnas_paper' and run.method.startswith('bpnas_'):
        quant.mixing = run.method.removeprefix('bpnas_')
    elif run.method in ('edmips', 'dnas'):
        like = LIKE.get(run.set, SETS[run.set][0])
        own = Config.fromfile(ROOT / f'configs/{run.method}/{like}.py')
        own.custom_hooks[0].penalties[0].cost.input_shape = shape
        for key in ('mixing', 'own_weights', 'relaxation'):
            if key in own.model.quant:
                quant[key] = own.model.quant[key]
        quant.relaxation.pop('factorised', None)
        cfg.custom_hooks = [dict(own.custom_hooks[0], budgets=hook.budgets)]
    only_the_end(cfg)
    return cfg


def finetune_config(run: Run, policy: Path, load_from: str) -> Config:
    cfg = Config.fromfile(config_of(run, '_finetune'))
    cfg.model.quant.policy = str(policy)
    cfg.load_from = load_from
    if run.method == 'uniform_long':
        lengthen(cfg, search_config(run).train_cfg.max_epochs)
    only_the_end(cfg)
    return cfg


def first_config(run: Run, policy: Path, load_from: str) -> Config:
    """A training at fixed bits that takes as long as the search, with its schedule.

    An iteration of a search takes 2.4 of these (step_time.py).
    """
    search = search_config(run)
    cfg = finetune_config(run, policy, load_from)
    for key in ('train_cfg', 'param_scheduler', 'optim_wrapper'):
        cfg[key] = search[key]
    lengthen(cfg, round(1.4 * search.train_cfg.max_epochs))
    only_the_end(cfg)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1)
    return cfg


def by_hand(cfg: Config, policy: Path) -> None:
    """Writes over ``policy`` what a person would do in a minute."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, data_preprocessor=preprocessor(cfg)))
    problem = Problem(model, cfg.custom_hooks[0].budgets)
    (table,) = problem.tables
    inner = [g for g in problem.space.groups if g.layers[0] not in problem.space.ends]
    hands = []
    for candidate in inner[0].candidates:
        found = problem.space.uniform(candidate)
        _, *last = problem.space.ends
        found.layers.update(dict.fromkeys(last, Precision(4, 4)))
        if table.of(found) <= table.limit:
            hands.append((table.of(found), min(candidate), found))
    problem.described(max(hands, key=lambda hand: hand[:2])[-1]).save(policy)


def lengthen(cfg: Config, epochs: int) -> None:
    """A training of so many epochs more, its cosine stretched over all of them."""
    cfg.train_cfg.max_epochs += epochs
    schedule = cfg.param_scheduler
    for each in schedule if isinstance(schedule, list) else [schedule]:
        if 'T_max' in each:
            each.T_max += epochs


def float_net(load_from: str, seed: int, floats: int) -> str:
    """The float checkpoint that a seed starts from."""
    if floats == 1:
        return load_from
    return load_from.replace('_float/', f'_float_{seed % floats}/')


def only_the_end(cfg: Config) -> None:
    """One validation, at the end, and no checkpoint."""
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=-1, save_last=False
    )


# --- one run --------------------------------------------------------------------------


def execute(run: Run, args: argparse.Namespace, settings: dict) -> dict:
    """Search, fine-tuning, test; returns and writes the record."""
    folder = args.work_dir / run.name
    folder.mkdir(parents=True, exist_ok=True)
    with ONE_BY_ONE:
        cfg = search_config(run)
        cfg.load_from = float_net(cfg.load_from, run.seed, args.floats)
        cfg.merge_from_dict(settings['search_options'])
        cfg.dump(folder / 'search.py')
    command = [folder / 'search.py', '--work-dir', folder / 'search']
    command += ['--seed', run.seed]
    if run.method in BASELINES:
        command = ['tools/baseline.py', *command, '--budget', run.budget]
        command += ['--method', *BASELINES[run.method]]
    else:
        command = ['tools/train.py', *command]
    spent = process(folder, 'search', args.threads, *command)
    policy = folder / 'search/policy.json'
    searched = folder / 'search/searched.pth'
    if run.method == 'by_hand':
        with ONE_BY_ONE:
            by_hand(cfg, policy)
    if run.method.endswith('_twice'):
        with ONE_BY_ONE:
            first = first_config(run, policy, str(cfg.load_from))
            first.dump(folder / 'first.py')
        command = ['tools/train.py', folder / 'first.py', '--seed', run.seed]
        command += ['--work-dir', folder / 'first']
        spent = process(folder, 'first', args.threads, *command)
        (trained,) = (folder / 'first').glob('*.pth')
        trained.replace(searched)
    own_weights = searched.is_file() and not args.from_float
    with ONE_BY_ONE:
        tuning = finetune_config(
            run, policy, str(searched if own_weights else cfg.load_from)
        )
        tuning.merge_from_dict(settings['finetune_options'])
        tuning.dump(folder / 'finetune.py')
    record = dict(
        asdict(run),
        metric=SETS[run.set][1],
        start='searched' if own_weights else 'float',
        epochs=tuning.train_cfg.max_epochs,
        settings=settings,
        threads=args.threads,
        layers={n: list(p) for n, p in Policy.load(policy).layers.items()},
        mmmpq=__version__,
    )
    tuned = None if own_weights else same_finetuning(record, args.work_dir)
    record |= tuned or finetune(run, folder, args.threads)
    with ONE_BY_ONE:
        record |= costs(cfg, policy, folder / 'search/search_history.jsonl')
    record |= dict(search_seconds=spent['cpu_seconds'], memory_mib=spent['memory_mib'])
    searched.unlink(missing_ok=True)  # the record and the policy are what is kept
    atomic_write(
        args.work_dir / f'{run.name}.json', json.dumps(record, indent=1) + '\n'
    )
    return record


def finetune(run: Run, folder: Path, threads: int) -> dict:
    """Runs ``finetune.py`` in ``folder``, which ends with the test."""
    spent = process(
        *(folder, 'finetune', threads, 'tools/train.py', folder / 'finetune.py'),
        *('--work-dir', folder / 'finetune', '--seed', run.seed),
    )
    accuracy = last_metric(folder / 'finetune', SETS[run.set][1])
    return dict(accuracy=accuracy, finetune_seconds=spent['cpu_seconds'])


def same_finetuning(record: dict, work_dir: Path) -> dict | None:
    """What another method got for the same policy, from the float net, if any did.

    Training repeats bit for bit; with 2 bits for the least, W2A2 is one policy.
    """
    differs = ('method', 'budget')
    for other in read_records(work_dir):
        if all(other.get(k) == v for k, v in record.items() if k not in differs):
            return {k: other[k] for k in ('accuracy', 'finetune_seconds')}
    return None


def costs(cfg: Config, policy: Path, history: Path) -> dict:
    """BOPs of the policy, the budget, and both of the choice before the solver.

    That is the most probable candidate of each group in the last record of the search;
    a baseline has none.
    """
    found = Policy.load(policy)
    budget = found.meta['budgets'][0]
    before = None
    in_bops = cfg.custom_hooks[0].budgets[0].type == 'BOPs'
    if in_bops and history.is_file():
        header, *_, last = history.read_text().splitlines()
        layers = dict(found.layers)
        probs = json.loads(last)['probs']
        for name, group in json.loads(header)['groups'].items():
            best = max(range(len(probs[name])), key=probs[name].__getitem__)
            choice = Precision(*group['candidates'][best])
            layers.update(dict.fromkeys(group['layers'], choice))
        init_default_scope(cfg.default_scope)
        model = MODELS.build(dict(cfg.model, data_preprocessor=preprocessor(cfg)))
        before = total_cost(BOPs(), profile(model, budget['input_shape']), layers)
    return dict(bops=budget['cost'], limit=budget['limit'], bops_before=before)


def preprocessor(cfg: Config):
    return cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')


# --- all of them ----------------------------------------------------------------------


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps others from running in a folder, as long as this process lives.

    Raises:
        ValueError: Another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f'--work-dir: another search_quality.py runs in {folder}; accepted is '
                'another folder, or this one after it'
            ) from None
        yield


def read_records(work_dir: Path) -> list[dict]:
    return [json.loads(p.read_text()) for p in sorted(work_dir.glob('*.json'))]


def all_records(args: argparse.Namespace) -> dict[Run, dict]:
    """The records in --work-dir, and with --keep those that only runs.csv has."""
    kept = args.out / 'runs.csv'
    records = read_csv(kept.read_text()) if args.keep and kept.is_file() else []
    records += read_records(args.work_dir)
    return {Run(*(r[field.name] for field in fields(Run))): r for r in records}


def missing_runs(args: argparse.Namespace, settings: dict) -> list[Run]:
    """The runs asked for that have no record yet.

    Raises:
        ValueError: A record was made with other settings.
    """
    done = all_records(args)
    for each, record in done.items():
        if record['settings'] != settings:
            raise ValueError(
                f'--work-dir: {each.name} was made with other settings: '
                f'{record["settings"]}, now {settings}; name another folder (with '
                '--keep, another --out too)'
            )
    runs = [
        Run(*each)
        for each in (
            (s, m, b, seed)
            for seed in args.seeds
            for s in args.sets
            for b in args.budgets
            for m in args.methods
        )
    ]
    return [each for each in runs if each not in done]


def execute_all(
    runs: list[Run], args: argparse.Namespace, settings: dict, console: Console
) -> list[str]:
    """Runs them side by side; returns what went wrong."""
    columns = (
        *(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    failures = []
    with (
        Progress(*columns, console=console) as progress,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        task = progress.add_task('runs', total=len(runs))
        futures = {pool.submit(execute, each, args, settings): each for each in runs}
        for future in as_completed(futures):
            name = futures[future].name
            progress.advance(task)
            try:
                record = future.result()
            except ValueError as error:
                failures.append(str(error))
                progress.console.print(f'{name}: failed', markup=False)
                continue
            progress.console.print(
                f'{name}: {record["metric"]} {record["accuracy"]:.4g} at '
                f'{record["bops"] / record["limit"]:.1%} of the budget, '
                f'search {record["search_seconds"]:.0f} s'
            )
    return failures


def main() -> None:
    args = parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    settings = dict(
        from_float=args.from_float,
        search_options=args.search_options or {},
        finetune_options=args.finetune_options or {},
    )
    if args.floats > 1:
        settings['floats'] = args.floats
    settings = json.loads(json.dumps(settings))
    failures = []
    runs = missing_runs(args, settings) if args.jobs else []
    for name, seed in {(each.set, each.seed) for each in runs}:
        load_from = Config.fromfile(search_file(name)).load_from
        check_file(
            str(ROOT / float_net(load_from, seed, args.floats)),
            f'the float checkpoint of {name} (train configs/float first)',
        )
    if runs:
        with alone_in(args.work_dir):
            failures = execute_all(runs, args, settings, console)
    records = list(all_records(args).values())
    if records:
        write_results(records, args.out, console, args.reference)
    if failures:
        raise ValueError('\n'.join(failures))


def search_file(name: str) -> Path:
    return ROOT / f'configs/bpnas/{SETS[name][0]}.py'


if __name__ == '__main__':
    run(main)
