"""BatchNorm of which the first channels are in use."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ElasticBatchNorm2d(nn.BatchNorm2d):
    """The first ``num_features`` channels of a BatchNorm, statistics and all.

    Statistics of one subnet are wrong for another: they are estimated anew for every
    subnet that is evaluated.

    Source: Once-for-All: Train One Network and Specialize it for Efficient Deployment,
    2020, arXiv 1908.09791.

    Args:
        num_features: Channels of the largest layer. Set the attribute of that name to
            put fewer to use.
        eps, momentum: As of ``nn.BatchNorm2d``.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1
    ) -> None:
        super().__init__(num_features, eps, momentum)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        momentum = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the average over all batches
                momentum = 1 / float(self.num_batches_tracked)
        first = slice(self.num_features)
        return F.batch_norm(
            input,
            self.running_mean[first],
            self.running_var[first],
            self.weight[first],
            self.bias[first],
            self.training,
            momentum or 0.0,
            self.eps,
        )

    @torch.no_grad()
    def settle(self) -> None:
        """Becomes the plain layer of the channels in use, in place."""
        first = slice(self.num_features)
        for name, param in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(param[first].clone(), param.requires_grad))
        for name in ('running_mean', 'running_var'):
            setattr(self, name, getattr(self, name)[first].clone())
        self.__class__ = nn.BatchNorm2d
