"""What a runtime computes in integers, from a data file of this folder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmmpq.export.integers import activation_levels, weight_integers, weight_levels
from mmmpq.fileio import strict_json
from mmmpq.layers.base import QuantLayer
from mmmpq.policy import SKIP, some_of

FOLDER = Path(__file__).parent / 'targets'
TARGETS = tuple(sorted(path.stem for path in FOLDER.glob('*.json')))


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        name: Of its file.
        about: What it describes.
        type: Of the integers between operators: 'uint8', around any zero point; 'int8',
            around 0; or 'by sign', int8 where a layer's levels are signed, else uint8.
        signed_weights: Whether it wants int8 for weights whatever the processor.
        clip: Where levels are clipped that the type has and the true width has not:
            'integer', behind QuantizeLinear, or 'float', before it.
        folded_clip: What the clips around a quantizer become, as
            :func:`.clips.fold_clips` says: 'integer', 'float', or None: they stay.
        adds_zero: Whether integers go to another grid in a sum with 0, one operator,
            in place of DequantizeLinear and QuantizeLinear, two.
        layers: Operators of layers that it computes in integers.
        free: Those of them whose output may go on in float.
        operators: Others that it computes in integers between quantized tensors.
        through: Operators that pass integers on: what goes in and what comes out have
            one scale.
        integers: Operators of layers that it computes in integers whoever wrote the
            file.
        closed: Operators that it computes in integers only where what they make is
            quantized again.
        joins_sums: Whether a layer takes in the sum behind it, of which it then is the
            one input that need not be quantized.
        sources: Where that is said.
    """

    name: str
    about: str
    type: str
    signed_weights: bool
    clip: str
    folded_clip: str | None
    adds_zero: bool
    layers: tuple[str, ...]
    free: tuple[str, ...]
    operators: tuple[str, ...]
    through: tuple[str, ...]
    integers: tuple[str, ...]
    closed: tuple[str, ...]
    joins_sums: bool
    sources: tuple[str, ...]

    @classmethod
    def load(cls, name: str, key: str = 'target') -> 'Target':
        """
        Args:
            name: Of one of :data:`TARGETS`.
            key: What named it, for the message of the error.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in TARGETS:
            raise ValueError(
                f'{key}: found {name!r}; accepted are {", ".join(TARGETS)}'
            )
        settings = strict_json((FOLDER / f'{name}.json').read_text())
        lists = {k: tuple(v) for k, v in settings.items() if isinstance(v, list)}
        return cls(name, **{**settings, **lists})

    @property
    def types(self) -> tuple[str, ...]:
        """Those that it may be."""
        return ('int8', 'uint8') if self.type == 'by sign' else (self.type,)

    def type_of(self, readers: Iterable[str]) -> str:
        """That of a tensor, by those in which layers read it."""
        if self.type != 'by sign':
            return self.type
        return 'int8' if 'int8' in readers else 'uint8'

    def check(self, layers: Mapping[str, QuantLayer], containers: str) -> None:
        """Raises ValueError if the target lacks a type or a width that a net needs.

        Args:
            layers: By name.
            containers: As of :func:`.graph.export_onnx`.
        """
        if containers != '8bit':
            raise ValueError(
                f'containers: found {containers!r}; target {self.name} computes in '
                "integers of 8 bits, for which '8bit' is accepted"
            )
        wide = [n for n, m in layers.items() if m.precision.a_bits == 16]
        if wide:
            raise ValueError(
                f'target {self.name}: it computes in integers of 8 bits; found inputs '
                f'of 16 in {some_of(wide)}; accepted are 1 to 8, and 32'
            )
        if self.type != 'int8':
            return
        names = [n for n, m in layers.items() if m.precision != SKIP and _leaves(m)]
        if names:
            raise ValueError(
                f'target {self.name}: it has int8 around 0 alone; found levels that '
                f'leave it in {some_of(names)}; accepted are inputs from 0 '
                'of at most 7 bits, signed ones of at most 8, and symmetric weights'
            )


def _leaves(layer: QuantLayer) -> bool:
    """Whether an input or a weight has levels beyond int8, or another zero than 0."""
    ranges = []
    if (levels := activation_levels(layer)) is not None:
        _, zero, *ends = levels
        ranges.append((zero != 0, *ends))
    if (integers := weight_integers(layer)) is not None:
        ranges.append((integers[2] is not None, *weight_levels(layer)))
    return any(zero or low < -128 or high > 127 for zero, low, high in ranges)
