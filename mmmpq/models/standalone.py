"""The plain net that a policy takes out of a supernet."""

from typing import Any

from torch import nn

from mmmpq.models.copying import copy_of
from mmmpq.models.policies import apply_policy, forget_statistics
from mmmpq.policy import Policy, near


def standalone(model: nn.Module, policy: Policy) -> nn.Module:
    """The fixed net of ``policy``, a copy; ``model`` stays as it is.

    Precisions are those of ``policy.layers``. Of elastic modules, the architecture is
    ``policy.meta['architecture']``: weights are sliced, kernels transformed, blocks
    left out, and what remains are the plain layers. In evaluation its outputs equal
    those of the supernet's active subnet bit for bit, with the same statistics. Those
    of :class:`mmmpq.quantizers.BatchQuantizer` are kept only if ``policy`` is that of
    the active subnet: any other net is to be calibrated.

    The same net is built from a config with ``backbone=dict(type=
    'mmmpq.SubnetMobileNetV3', architecture='policy.json', ...)`` and
    ``quant=dict(policy='policy.json')``; its state dict fits there.

    Args:
        model: A supernet with mixed layers, with elastic modules, or with both.
        policy: Precisions of the layers in use, and the architecture.

    Raises:
        ValueError: Layers or genes that the supernet lacks, that are missing, or
            that have a value which is not among their choices; or a quantizer whose
            range depends on the whole weight at every call.
    """
    net = copy_of(model)
    elastic = [m for m in net.modules() if hasattr(m, 'genes')]
    if not elastic:
        return apply_policy(net, policy)
    values = _architecture(elastic, policy)
    if any(
        getattr(m, 'architecture', None) != {g: values[g] for g in m.genes()}
        for m in elastic
    ):
        forget_statistics(net)
    for module in elastic:
        module.activate(values)
    for module in elastic:
        _settle(module)  # leaves out what is not in use, so before its layers
    apply_policy(net, policy)
    for module in list(net.modules()):
        _settle(module)
    return net


def _settle(module: nn.Module) -> None:
    if hasattr(module, 'settle'):
        module.settle()


def _architecture(elastic: list[nn.Module], policy: Policy) -> dict[str, Any]:
    """The genes of the policy: exactly those of the elastic modules."""
    values = policy.meta.get('architecture') or {}
    names = {gene for module in elastic for gene in module.genes()}
    for title, genes in (
        ('the supernet has no gene', set(values) - names),
        ('it lacks the gene', names - set(values)),
    ):
        if genes:
            gene = min(genes)
            raise ValueError(
                f'policy.meta.architecture: {title} {gene}; {near(gene, sorted(names))}'
            )
    return values
