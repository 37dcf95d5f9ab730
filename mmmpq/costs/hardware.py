"""Which precisions a piece of hardware offers for which layer type."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mmmpq.arguments import checks_arguments
from mmmpq.costs.layer_types import LAYER_TYPES
from mmmpq.fileio import strict_json
from mmmpq.policy import SKIP, Precision, near, parse_candidates

_ANY = 'any'
_DEFAULT = 'default'
FOLDER = Path(__file__).parent / 'hardware_profiles'
NEEDED = {'name', 'layers'}
MORE = {'symmetric', 'per_channel', 'reads', 'sources'}
PARTS = 'weights', 'inputs'
READS = 'float', 'QDQ'
PROFILES = tuple(sorted(path.stem for path in FOLDER.glob('*.json')))


class Hardware:
    """A hardware profile.

    Args:
        name: What it describes.
        layers: From a layer type (or ``'default'``) to the precisions that it allows,
            ``'any'`` or a list such as ``['W4A4', 'W8A8']`` (``'W32A32'`` for float).
            Depthwise convs without an entry follow the entry of their conv type. A
            type without any entry, and without a default, allows nothing. Skipping a
            block (``'W0A0'``) needs no entry: every hardware can.
        symmetric: Of 'weights' and 'inputs' those whose zero point must be 0.
        per_channel: Layer types whose weights may have a scale for each output channel,
            or 'any'.
        reads: What its tools take: 'float' nets, which they quantize, or 'QDQ' too.
        sources: Where that is said.

    Raises:
        ValueError: A layer type or precision is unknown, or a value is none of these;
            what is accepted is listed.
    """

    @checks_arguments()
    def __init__(
        self,
        name: str,
        layers: Mapping[str, str | list],
        symmetric: Sequence[str] = (),
        per_channel: str | Sequence[str] = _ANY,
        reads: str = 'QDQ',
        sources: Sequence[str] = (),
    ) -> None:
        types = [per_channel] if isinstance(per_channel, str) else per_channel
        _check_among('symmetric', symmetric, PARTS)
        _check_among('per_channel', types, (_ANY, *LAYER_TYPES))
        _check_among('reads', [reads], READS)
        self.name = name
        self.symmetric, self.reads = tuple(symmetric), reads
        self.per_channel, self.sources = per_channel, tuple(sources)
        self._allowed = {}
        known = (_DEFAULT, *LAYER_TYPES)
        for type_, allowed in layers.items():
            if type_ not in known:
                raise ValueError(
                    f'hardware {name!r}: unknown layer type {type_!r}; '
                    f'{near(type_, known)}'
                )
            if allowed != _ANY:
                allowed = parse_candidates(allowed, f'hardware {name!r}: {type_}')
            self._allowed[type_] = allowed

    @classmethod
    @checks_arguments('hardware')
    def load(cls, path: str | Path) -> 'Hardware':
        """Read ``{"name": ..., "layers": {"Conv2d": ["W4A4"], "default": "any"}}``.

        Args:
            path: Of a file, which may have the other arguments as well; or one of
                :data:`PROFILES`.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Damaged, or other keys than these.
        """
        if path in PROFILES:
            path = FOLDER / f'{path}.json'
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'hardware profile {str(path)!r} does not exist; accepted are a file, '
                f'{", ".join(PROFILES)}'
            )
        try:
            data = strict_json(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f'hardware profile {path} is not JSON: {error}') from error
        if (
            not isinstance(data, dict)
            or not NEEDED <= set(data) <= NEEDED | MORE
            or not isinstance(data['layers'], dict)
        ):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f'hardware profile {path}: found {found}; needed are the keys "name" '
                'and "layers", a dict from layer type to precisions'
            )
        try:
            return cls(**data)
        except ValueError as error:
            raise ValueError(f'hardware profile {path}: {error}') from error

    def allows(self, layer_type: str, precision: Precision) -> bool:
        """Whether layers of that type run at that precision; to skip one is allowed."""
        if precision == SKIP:
            return True
        allowed = self.allowed(layer_type)
        return allowed == _ANY or precision in allowed

    def allowed(self, layer_type: str) -> str | tuple[Precision, ...]:
        """The precisions of layers of that type, or 'any'."""
        names = (layer_type, layer_type.replace('Depthwise', ''), _DEFAULT)
        return next((self._allowed[n] for n in names if n in self._allowed), ())

    def least(self, layer_type: str, precision: Precision) -> Precision | None:
        """The precision of the fewest bits that has at least those of ``precision``.

        Examples:
            >>> Hardware('npu', {'default': ['W4A8', 'W8A8']}).least('Linear', (3, 4))
            Precision(w_bits=4, a_bits=8)
        """
        if self.allows(layer_type, precision):
            return precision
        w_bits, a_bits = precision
        wide = [
            p for p in self.allowed(layer_type) if p[0] >= w_bits and p[1] >= a_bits
        ]
        return min(wide, key=sum, default=None)

    def restrict(
        self, layer_type: str, candidates: Iterable[Precision]
    ) -> tuple[Precision, ...]:
        """The candidates that are allowed.

        Raises:
            ValueError: None is, except for skipping.
        """
        candidates = tuple(candidates)
        allowed = tuple(c for c in candidates if self.allows(layer_type, c))
        if not set(allowed) - {SKIP}:
            raise ValueError(
                f'hardware {self.name!r} allows none of '
                f'{", ".join(map(str, candidates))} for {layer_type} layers'
            )
        return allowed


def _check_among(key: str, found: Sequence[str], accepted: Sequence[str]) -> None:
    for each in found:
        if each not in accepted:
            raise ValueError(
                f'hardware {key}: found {each!r}; accepted are {", ".join(accepted)}'
            )
