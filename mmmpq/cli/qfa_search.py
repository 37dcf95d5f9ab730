"""Search the subnets of a trained supernet for the best inside budgets."""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from mmmpq.cli.flags.qfa_search import parse_args
from mmmpq.costs.dry_run import is_detector
from mmmpq.engine.launch import load_config
from mmmpq.engine.subnet_evaluation import LOSS, Measure
from mmmpq.engine.subnet_scores import SubnetScores
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.code import Codes
from mmmpq.subnets.evolution import distinct, import_pymoo, nondominated, spread
from mmmpq.subnets.predictor import PREDICTORS, held_out_tau
from mmmpq.subnets.results import SubnetResults
from mmmpq.subnets.search import Candidate, SubnetSearch
from mmmpq.version import __version__
from mmmpq.visualization.progress import progress_bar, terminal


class QFASearch:
    """The stages of the tool; each leaves what it found for the next ones."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args, self.console = args, console
        cfg = load_config(args)
        self.work_dir = Path(cfg.work_dir)
        cfg.work_dir = str(self.work_dir / 'logs')  # the training's config stays
        randomness = cfg.get('randomness') or {}
        self.seed = args.seed if args.seed is not None else randomness.get('seed') or 0
        cfg.randomness = {**randomness, 'seed': self.seed}
        self.scores = SubnetScores(
            *(cfg, args.checkpoint, self.work_dir, console),
            metric=args.metric,
            processes=args.processes,
        )
        self.model, self.space = self.scores.model, self.scores.space
        images = None
        if args.val_batches and cfg.get('val_dataloader'):
            images = args.val_batches * cfg.val_dataloader.batch_size
        loss = args.measure == LOSS or (not args.measure and is_detector(self.model))
        self.sampled = Measure(args.batches, images, loss)
        self.budgets = self._budgets()

    def _budgets(self) -> SubnetBudgets:
        args = self.args
        shape = args.input_shape or self.scores.input_shape(self.sampled)
        self.console.print(f'reference input: {tuple(shape)}')
        common = dict(input_shape=tuple(shape))
        if args.proposals:
            common['proposals'] = args.proposals
        return SubnetBudgets.parse(
            *(self.model, self.space, args.budget, args.type, common, args.table),
            args.objectives or (),
        )

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes (n, G) of random subnets and what they were measured to score (n,)."""
        args, code = self.args, self.budgets.code
        drawn = code.canonical(spread(code.sizes, 4 * args.samples, self.seed))
        genes = distinct(drawn)[: args.samples]
        subnets = code.subnets(genes)
        _, scores = self.scores.measure('samples', subnets, self.sampled)
        finite = np.isfinite(scores)
        return genes[finite], scores[finite]

    def search(self, genes: np.ndarray, scores: np.ndarray) -> list[Candidate]:
        """Trains the predictors and proposes subnets."""
        args, one_hot = self.args, self.budgets.code.one_hot(genes)
        self.tau = {
            name: held_out_tau(partial(make, self.seed), one_hot, scores)
            for name, make in PREDICTORS.items()
        }
        best = max(self.tau, key=lambda n: np.nan_to_num(self.tau[n], nan=-1))
        self.predictor = best if args.predictor == 'best' else args.predictor
        trained = {
            name: make(self.seed).fit(one_hot, scores)
            for name, make in PREDICTORS.items()
        }
        self.console.print(
            f"{len(scores)} samples; Kendall's tau on held-out ones: "
            + ', '.join(f'{name} {tau:.3f}' for name, tau in self.tau.items())
            + f'; searching with {self.predictor}'
        )
        with progress_bar(self.console, 'generations', args.generations) as bar:
            search = SubnetSearch(
                *(self.budgets, trained[self.predictor]),
                *(args.population, args.generations, self.seed, bar),
            )
            best = nondominated(self.budgets.costs(genes), scores)
            front = search.front(args.re_evaluate, genes[best])
        return [
            *front,
            *search.milp(trained['linear']),
            *search.uniform(args.re_evaluate),
        ]

    def refine(
        self, proposed: list[Candidate], genes: Codes, scores: np.ndarray, number: int
    ) -> tuple[Codes, np.ndarray]:
        """Measures what was proposed like the samples, and adds it to them."""
        subnets = [c.subnet for c in proposed]
        title = f'round {number}'
        _, more = self.scores.measure(title, subnets, self.sampled, 'refined')
        genes = np.concatenate([genes, self.budgets.code.of(subnets)])
        scores = np.append(scores, more)
        finite = np.isfinite(scores)
        first = np.unique(genes, axis=0, return_index=True)[1]
        rows = np.intersect1d(first, np.flatnonzero(finite))
        return genes[rows], scores[rows]

    def evaluate(self, candidates: list[Candidate]) -> SubnetResults:
        """Measures what was proposed on the whole validation set."""
        whole = Measure(self.sampled.batches)
        metrics, scores = self.scores.measure(
            'evaluated', [c.subnet for c in candidates], whole
        )
        meta = dict(
            model=type(self.model).__name__,
            method='qfa',
            seed=self.seed,
            mmmpq=__version__,
        )
        head = dict(predictor=self.predictor, tau=self.tau)
        return SubnetResults(
            *(self.space, self.budgets, candidates, metrics, scores),
            *(self.scores.metric, meta, head),
        )


def main() -> None:
    args = parse_args()
    import_pymoo()  # not only after an hour of samples
    console = terminal(120)
    search = QFASearch(args, console)
    genes, scores = search.sample()
    proposed = search.search(genes, scores)
    for i in range(2, args.rounds + 1):
        genes, scores = search.refine(proposed, genes, scores, i)
        proposed = search.search(genes, scores)
    results = search.evaluate(proposed)
    search.scores.close()
    # The loss is on another scale than the metric: the samples are then not drawn.
    cloud = None if search.sampled.loss else (genes, scores)
    results.show(console)
    results.write(search.work_dir, args.target_budget, cloud)
    console.print(f'wrote {search.work_dir}/front.json, front.csv, front.png, policies')
