"""A search in a training loop of one's own: plain torch, no Runner, no config.

A small net for scikit-learn's digits: trained in float, searched for a budget of as
many BOPs as W3A3, fine-tuned at the precisions found. Half a minute on a CPU.

    python examples/minimal_search.py --epochs 6 --budget W3A3
"""

import argparse
from collections.abc import Iterator

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import mmmpq


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (n, 1, 8, 8) and labels (n,), to train on and to test on."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return x[train], y[train], x[test], y[test]


def net() -> nn.Module:
    def conv(i: int, o: int, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(i, o, 3, stride, padding=1, bias=False)
        return [layer, nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(
        *(*conv(1, 16), *conv(16, 32, 2), *conv(32, 32), *conv(32, 64, 2)),
        *(*conv(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def batches(x: Tensor, y: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(50):
            yield x[part], y[part]


def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    sgd = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    return mmmpq.exempt_ranges(sgd, model)


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float) -> None:
    model.train()
    weights = optimizer(model, lr)
    for inputs, labels in batches(x, y, epochs):
        weights.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        weights.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    return float((model(x).argmax(1) == y).float().mean())


def search(
    model: nn.Module, x: Tensor, y: Tensor, epochs: int, budget: str
) -> mmmpq.Policy:
    """Trains a supernet, and with it the logits on a share of the data of their own."""
    held_x, held_y, x, y = x[:400], y[:400], x[400:], y[400:]
    mmmpq.calibrate(model, [x[:200]])
    found = mmmpq.Search(model, [budget], input_shape=(1, 8, 8), log=print)
    weights, steps = optimizer(model, 0.02), list(batches(x, y, epochs))
    held_out = batches(held_x, held_y, 10**6)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), labels)

    model.train()
    found.begin(len(steps), epoch=len(steps) // epochs)
    for i, batch in enumerate(steps):
        found.draw(i)
        if found.is_due(i):
            found.step(i, lambda: loss(*next(held_out)))  # of the logits alone
        with found.mixing():
            weights.zero_grad()
            loss(*batch).backward()
        weights.step()
    return found.policy(found.choose(lambda: float(loss(held_x, held_y))))


def main(argv: list[str] | None = None) -> tuple[mmmpq.Policy, float, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, default=6, help='of each training')
    parser.add_argument('--budget', default='W3A3', help="'W3A3', '12 KB', ...")
    parser.add_argument('--out', default='policy.json', help='(default: %(default)s)')
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    x, y, test_x, test_y = data()
    model = net()
    train(model, x, y, args.epochs, lr=0.1)
    as_float = accuracy(model, test_x, test_y)

    mmmpq.quantize(model, candidates=['W2A2', 'W3A3', 'W4A4', 'W8A8'], groups='layer')
    policy = search(model, x, y, args.epochs, args.budget)
    mmmpq.apply_policy(model, policy)
    train(model, x, y, args.epochs, lr=0.02)
    quantized = accuracy(model, test_x, test_y)

    print(mmmpq.cost(model, (1, 8, 8)))
    print(f'accuracy: float {as_float:.3f}, quantized {quantized:.3f}')
    policy.save(args.out)
    return policy, as_float, quantized


if __name__ == '__main__':
    main()
