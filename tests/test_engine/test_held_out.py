"""The split inside a Runner, and batches whose randomness follows from their number."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from mmmpq.engine.batches import Batches, endless, hold_out, train_batches

SCHEDULE = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=3, convert_to_iter_based=True),
]


class Rates(Hook):
    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen += runner.optim_wrapper.get_lr()['lr'][:1]


def pictures(loader):
    dataset = loader.dataset
    return {tuple(dataset.get_data_info(i)['inputs'].flatten()[:4].tolist())
            for i in range(len(dataset))}  # fmt: skip


def test_the_two_parts_share_no_picture(make, hook_of):
    runner = make(search=dict(held_out=0.25, measure=0))
    runner.train()
    train, held = runner.train_dataloader, hook_of(runner).batches.loader
    assert (len(train.dataset), len(held.dataset)) == (30, 10)
    assert len(pictures(train) | pictures(held)) == 40


def test_schedules_are_made_for_the_shorter_epoch(make):
    rates, wanted = Rates(), Rates()
    make(hooks=[rates], search=dict(held_out=0.2), param_scheduler=SCHEDULE).train()
    make(
        hooks=[wanted],
        param_scheduler=SCHEDULE,
        **{'train_dataloader.dataset.indices': 32},
    ).train()
    assert len(rates.seen) == 24
    assert rates.seen == pytest.approx(wanted.seen)
    assert rates.seen[0] == pytest.approx(0.005) and rates.seen[-1] < 0.001


def test_a_dataset_of_its_own(make, hook_of):
    runner = make(search=dict(held_out=dict(type='TinyPictures', n=12), measure=0))
    runner.train()
    assert len(runner.train_dataloader.dataset) == 40
    assert len(hook_of(runner).batches.loader.dataset) == 12
    assert runner.max_iters == 30


def test_all_of_the_training_set_in_another_order(make, hook_of):
    runner = make(search=dict(held_out=None, measure=0))
    runner.train()
    train, held = runner.train_dataloader, hook_of(runner).batches.loader
    assert pictures(train) == pictures(held) and runner.max_iters == 30
    orders = []
    for loader, epochs in ((train, range(100)), (held, range(1))):
        for epoch in epochs:
            loader.sampler.set_epoch(epoch)
            orders.append(tuple(loader.sampler))
    assert sorted(orders[-1]) == list(range(40)) and len(set(orders)) == 101


def test_iteration_based_loops_go_on_with_the_rest(make):
    seen = []

    class Pictures(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(data_batch['labels'])

    runner = make(
        hooks=[Pictures()],
        search=dict(measure=0),
        train_cfg=dict(_delete_=True, by_epoch=False, max_iters=10),
    )
    runner.train()
    assert runner.max_iters == 10 and len(torch.cat(seen)) == 40
    assert len(runner.train_dataloader) == 8


@pytest.fixture
def loader(make):
    runner = make()
    runner.train_loop  # noqa: B018  builds it
    return hold_out(runner, 0.4)


def test_batches_go_on_for_ever_and_cover_each_epoch(loader):
    batches = Batches(loader)
    first, second = batches.take(4), batches.take(4)
    assert batches.position == 8
    count = [
        torch.cat([b['labels'] for b in part]).bincount() for part in (first, second)
    ]
    assert len(loader) == 4 and torch.equal(*count)
    assert not torch.equal(first[0]['inputs'], second[0]['inputs'])


@pytest.mark.parametrize('position', [0, 1, 3, 4, 6, 9])
def test_a_batch_follows_from_its_position(loader, position):
    """Even in the middle of an epoch, with augmentations that draw random numbers."""
    whole = Batches(loader, seed=5).take(position + 2)
    rest = Batches(loader, position, seed=5).take(2)
    for a, b in zip(whole[position:], rest, strict=True):
        assert torch.equal(a['inputs'], b['inputs'])
    other = Batches(loader, position, seed=6).take(1)
    assert not torch.equal(rest[0]['inputs'], other[0]['inputs'])


@DATA_SAMPLERS.register_module(force=True)
class ByHalves(BatchSampler):
    """As mmdet's AspectRatioBatchSampler: images of a kind, what is left over goes."""

    def __iter__(self):
        buckets = [], []
        for index in self.sampler:
            bucket = buckets[index < self.first]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


@pytest.mark.parametrize('halves', [None, 10, 7])
@pytest.mark.parametrize('kind', ['InfiniteSampler', 'DefaultSampler'])
def test_samplers_without_end_and_those_that_end_early(make, kind, halves):
    by_halves = dict(type='ByHalves', drop_last=False)
    ByHalves.first = halves
    runner = make(
        train_cfg=dict(_delete_=True, by_epoch=False, max_iters=4),
        train_dataloader=dict(
            sampler=dict(type=kind, shuffle=True),
            **(dict(batch_sampler=by_halves) if halves else {}),
        ),
    )
    runner.train_loop  # noqa: B018  builds it
    batches = endless(runner, hold_out(runner, 0.5))
    taken = batches.take(23)
    labels = [torch.cat([b['labels'] for b in taken[i : i + 5]]) for i in (0, 5, 10)]
    counts = [part.bincount(minlength=4).tolist() for part in labels]
    assert halves or counts[0] == counts[1] == counts[2]  # each image once an epoch
    if halves is None or kind == 'InfiniteSampler':
        firsts = {tuple(b['labels'].tolist()) for b in taken[::5]}
        assert len(firsts) > 1  # in another order in each epoch
    resumed = endless(runner, hold_out(make_again(runner), 0.5))
    resumed.position = batches.position
    following = zip(batches.take(7), resumed.take(7), strict=True)
    assert all(torch.equal(a['inputs'], b['inputs']) for a, b in following)


def make_again(runner):
    """A runner of the same config, with the whole training set."""
    runner.cfg.experiment_name += '_again'
    again = type(runner).from_cfg(runner.cfg)
    again.train_loop  # noqa: B018
    return again


def test_a_sampler_that_makes_no_batch(make):
    ByHalves.first = 2
    sampler = dict(type='ByHalves', drop_last=False)
    runner = make(train_dataloader=dict(batch_sampler=sampler, batch_size=4))
    runner.train_loop  # noqa: B018
    with pytest.raises(
        ValueError, match='train_dataloader: its sampler makes no batch'
    ):
        endless(runner, hold_out(runner, 0.1)).take(1)


def test_batches_leave_the_generators_alone(loader):
    state = torch.get_rng_state()
    Batches(loader).take(6)
    assert torch.equal(state, torch.get_rng_state())


def test_train_batches_are_the_same_each_time_and_move_nothing(make):
    runner = make(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=9))
    loop = runner.train_loop
    first = train_batches(runner, 3)
    state = torch.get_rng_state()
    following = next(loop.dataloader_iterator)
    again = train_batches(runner, 99)
    assert len(first) == 3 and len(again) == 10
    for a, b in zip(first, again, strict=False):
        assert torch.equal(a['inputs'], b['inputs'])
    other = make(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=9))
    other.train_loop  # noqa: B018
    torch.set_rng_state(state)
    untouched = next(other.train_loop.dataloader_iterator)
    assert torch.equal(untouched['labels'], following['labels'])
