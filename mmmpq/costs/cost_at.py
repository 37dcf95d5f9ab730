"""A cost at a reference input, as it is written in a config."""

from collections.abc import Mapping, Sequence

from mmmpq.costs.cost import Cost
from mmmpq.costs.profile import checked_proposals, checked_shape
from mmmpq.policy import near
from mmmpq.registry import COSTS


class CostAt:
    """A cost at a reference input: what is counted, and of which images.

    Args:
        cost: The cost.
        input_shape: (C, H, W) of the reference input; None leaves it to
            :func:`mmmpq.costs.profile.reference_input_shape`.
        proposals: Reference number of RoIs; None leaves it to the model's test_cfg.
        where: The config key that it was read from, for the messages of errors.

    Raises:
        ValueError: One of them cannot be read; the message lists what is accepted.
    """

    where = 'cost'
    # Of a config, beside the type and the cost's own keys.
    keys: tuple[str, ...] = ('input_shape', 'proposals')
    example = "dict(type='BOPs', input_shape=(3, 224, 224))"

    def __init__(
        self,
        cost: Cost,
        input_shape: Sequence[int] | None = None,
        proposals: int | None = None,
        where: str | None = None,
    ) -> None:
        self.cost = cost
        self.where = where or self.where
        self.input_shape = checked_shape(input_shape, self.where)
        self.proposals = checked_proposals(proposals, self.where)

    @classmethod
    def build(cls, cfg: Mapping, where: str | None = None) -> 'CostAt':
        """Build from a config.

        Args:
            cfg: ``dict(type='BOPs', input_shape=(3, 224, 224), proposals=1000)``, of a
                budget with its ``limit``; other keys are the cost's own (``table`` of a
                Latency).
            where: The config key that holds it.

        Examples:
            >>> CostAt.build(dict(type='BOPs', input_shape=(3, 32, 32))).input_shape
            (3, 32, 32)
        """
        where = where or cls.where
        if not isinstance(cfg, Mapping):
            raise ValueError(
                f'{where}: found {cfg!r}; expected a dict such as {cls.example}'
            )
        cost = build_cost(cfg, where, ('type', *cls.keys))
        return cls(cost, *(cfg.get(key) for key in cls.keys), where=where)

    @property
    def name(self) -> str:
        return type(self.cost).__name__

    @property
    def unit(self) -> str:
        return self.cost.unit

    def __repr__(self) -> str:
        return f'CostAt({self.name}, {self.input_shape})'


def build_cost(cfg: Mapping, where: str, keys: Sequence[str]) -> Cost:
    """The cost of a config, of which ``keys`` are not its own.

    Raises:
        ValueError: No type, one that does not exist, or a wrong key (near names).
    """
    own = {key: value for key, value in cfg.items() if key not in keys}
    known = sorted(COSTS.module_dict)
    name = cfg.get('type')
    if name is None:
        raise ValueError(f'{where}: type is missing; accepted are {", ".join(known)}')
    cls = name
    if isinstance(name, str):
        cls = COSTS.module_dict.get(name.rpartition('mmmpq.')[2])
    if not (isinstance(cls, type) and issubclass(cls, Cost)):
        raise ValueError(
            f'{where}: unknown type {name!r}; {near(str(name), known)}; accepted are '
            f'{", ".join(known)}'
        )
    try:
        return cls(**own)
    except TypeError as error:
        names = [name for name in keys if name not in cfg]
        hints = '; '.join(f'{key}: {near(key, names)}' for key in own)
        raise ValueError(
            f'{where} {cls.__name__}: wrong keys {sorted(own)} ({error}); {hints}'
        ) from error
