"""Genes: what an elastic module chooses from, by name."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from mmmpq.policy import Policy

Genes = dict[str, tuple]  # gene -> allowed values, smallest first


def checked(
    genes: Mapping[str, tuple], values: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """The values of ``genes`` among ``values``; what others have there is passed by.

    Args:
        genes: Gene -> allowed values.
        values: Gene -> value; a gene may be missing.
        key: Where the values come from, for the message of an error.

    Raises:
        ValueError: A value that is not allowed.
    """
    choice = {name: values[name] for name in genes if name in values}
    for name, value in choice.items():
        if value not in genes[name]:
            raise ValueError(
                f'{key}: found {value!r} for {name}; accepted are '
                f'{", ".join(map(str, genes[name]))}'
            )
    return choice


def read_architecture(architecture: Any) -> dict[str, Any]:
    """The genes of a policy file, of a :class:`Policy`, or as they are given.

    Raises:
        FileNotFoundError: There is no such policy file.
        ValueError: The policy holds no architecture.
    """
    if isinstance(architecture, Mapping):
        return dict(architecture)
    policy = architecture
    if isinstance(policy, (str, PathLike)):
        policy = Policy.load(policy)
    if not isinstance(policy, Policy):
        raise ValueError(
            f'architecture: found {architecture!r:.80}; accepted are a policy.json of '
            'an elastic model, and a dict of its genes'
        )
    genes = policy.meta.get('architecture')
    if not isinstance(genes, Mapping):
        raise ValueError(
            f'architecture: {architecture} holds none in meta.architecture, as the '
            'policy of an elastic model does'
        )
    return dict(genes)
