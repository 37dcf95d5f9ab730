"""Any fixed MobileNetV3 out of the once-for-all supernet."""

from typing import Any

from mmpretrain.models.utils import InvertedResidual

from mmmpq.models.elastic.block import middle_channels, se_cfg
from mmmpq.models.elastic.genes import checked, read_architecture
from mmmpq.models.elastic.stages import MobileNetV3Stages
from mmmpq.models.elastic.weights import take_subnet
from mmmpq.registry import MODELS


@MODELS.register_module()
class SubnetMobileNetV3(MobileNetV3Stages):
    """A fixed net out of an :class:`ElasticMobileNetV3`, of plain layers.

    From a checkpoint of the supernet it takes its own part: kernels are transformed,
    channels sliced. Statistics are then to be calibrated.

    Args:
        architecture: The depth of each stage and the kernel and expansion of each of
            its blocks, such as ``{'stage1.depth': 1, 'stage1.0.kernel': 3,
            'stage1.0.expand': 6, ...}``; the policy file that holds them; or 'largest'
            or 'smallest'.
        **kwargs: Those of the supernet.

    Raises:
        ValueError: A value that is missing or not allowed.
    """

    def __init__(self, *, architecture: Any, **kwargs: Any) -> None:
        self.architecture = architecture  # read once the genes are known
        super().__init__(**kwargs)

    def _read(self) -> None:
        genes = self._genes()
        if self.architecture in ('largest', 'smallest'):
            end = -1 if self.architecture == 'largest' else 0
            self.architecture = {gene: values[end] for gene, values in genes.items()}
        self.architecture = read_architecture(self.architecture)
        checked(genes, self.architecture, 'architecture')

    def _choice(self, gene: str) -> Any:
        if gene not in self.architecture:
            raise ValueError(
                f'architecture: found no value for {gene}; accepted are '
                f'{", ".join(map(str, self._genes()[gene]))}'
            )
        return self.architecture[gene]

    def _depth(self, stage: str) -> int:
        return self._choice(f'{stage}.depth')

    def _block(self, name, in_channels, out, stride, with_se, act_cfg):
        middle = middle_channels(in_channels, self._choice(f'{name}.expand'))
        return InvertedResidual(
            *(in_channels, out, middle, self._choice(f'{name}.kernel'), stride),
            se_cfg=se_cfg(with_se, middle),
            norm_cfg=self.norm_cfg,
            act_cfg=act_cfg,
        )

    def _complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        take_subnet(self, state_dict, prefix)
