"""Accelerators whose time and energy depend on the bits, as files of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from mmmpq.arguments import check_least, checks_arguments
from mmmpq.fileio import check_file, strict_json
from mmmpq.policy import near

FOLDER = Path(__file__).parent / 'chips'
KINDS = ('conv', 'pointwise', 'depthwise', 'linear')  # of layers, each with its pass


@checks_arguments()
@dataclass(frozen=True)
class Pass:
    """The part of a layer that an array computes at once.

    Args:
        inputs: Input channels (of a depthwise pass 1).
        outputs: Output channels.
        positions: Output positions; a list: by side of the output map.
        taps: Elements of the kernel.
        cycles: Clock cycles; times the bits of each operand in ``serial``.
        in_turn: ``cycles`` are those of one output channel, one after the other.
        serial: 'w', 'a': operands that go in bit by bit.
        packs: 'w', 'a': operands of which narrower ones leave lanes for more input
            channels: the widest width divided by theirs.
        unfold: Layers of at most so many input channels have the elements of their
            kernel laid beside them (im2col), so that these fill the lanes.
        overhead: Further cycles of every pass.
        drain: Further cycles for every block of outputs and positions.
    """

    inputs: int
    outputs: int
    positions: int | list[int] = 1
    taps: int = 1
    cycles: int = 1
    in_turn: bool = False
    serial: list[str] = ()
    packs: list[str] = ()
    unfold: int = 0
    overhead: int = 0
    drain: int = 0

    def __post_init__(self) -> None:
        places = (
            self.positions if isinstance(self.positions, list) else [self.positions]
        )
        for key in ('inputs', 'outputs', 'taps', 'cycles'):
            check_least('', **{key: (getattr(self, key), 1)})
        for key in ('unfold', 'overhead', 'drain'):
            check_least('', **{key: (getattr(self, key), 0)})
        check_least('', positions=(min(places, default=0), 1))
        for key in ('serial', 'packs'):
            found = getattr(self, key)
            if set(found) - {'w', 'a'}:
                raise ValueError(f'{key}: found {found!r}; accepted are "w" and "a"')


@checks_arguments()
@dataclass(frozen=True)
class Memory:
    """What lies outside of the chip.

    Args:
        bits_per_cycle: Bandwidth, in bits a clock cycle of the chip.
        pj_per_bit: Energy of a bit that is read or written, in pJ.
        weight_buffer: Bits of weights that fit on the chip beside those that come;
            None: all.
        input_buffer: The same of inputs.
        sums: Outputs whose sums stay on the chip while weights and inputs go by.
        output_bits: Bits that an output costs; None: the width of the inputs.
    """

    bits_per_cycle: float
    pj_per_bit: float | None = None
    weight_buffer: int | None = None
    input_buffer: int | None = None
    sums: int | None = None
    output_bits: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self)


@checks_arguments()
@dataclass(frozen=True)
class Chip:
    """An accelerator.

    Args:
        name: What it is.
        clock_hz: Clock.
        w_bits: Widths of weights that it computes with, ascending; a width between is
            computed as the next, one above the widest in several pieces.
        a_bits: The same of activations.
        passes: From kinds of layers (:data:`KINDS`) to keys of :class:`Pass`. 'conv' is
            needed; a kind that has none runs as the next wider one: linear layers as
            pointwise ones, and these, like depthwise ones, as 'conv'.
        macs_per_cycle: In their place, multiply-accumulates a cycle by pair of widths,
            ``{"W8A8": 2.1, ...}``, whatever the layer.
        memory: Keys of :class:`Memory`; None: it never has to wait.
        pj_per_cycle: Energy of a cycle in which it computes, in pJ.
        pj_per_operand_bit: Energy of every bit of a product's operands, read from
            buffers, ``{"w": pJ, "a": pJ}``.
        paper: Where it is described.
        sources: From keys ('memory.pj_per_bit') to where their numbers are from.

    Raises:
        ValueError: A key is unknown or missing, or its value is no such number.
    """

    name: str
    clock_hz: float
    w_bits: list[int]
    a_bits: list[int]
    passes: Mapping | None = None
    macs_per_cycle: Mapping | None = None
    memory: Mapping | None = None
    pj_per_cycle: float | None = None
    pj_per_operand_bit: Mapping | None = None
    paper: str = ''
    sources: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_positive(self)
        for key in ('w_bits', 'a_bits'):
            found = getattr(self, key)
            if not found or found[0] < 1 or sorted(set(found)) != found:
                raise ValueError(f'{key}: found {found!r}; needed are ascending widths')
        if (self.passes is None) == (self.macs_per_cycle is None):
            raise ValueError('needed is one of passes and macs_per_cycle')
        if self.passes is not None:
            _check_keys('passes', self.passes, KINDS, needed=('conv',))
            self._set(
                'passes',
                {k: _part(Pass, f'passes.{k}', v) for k, v in self.passes.items()},
            )
        else:
            pairs = [f'W{w}A{a}' for w in self.w_bits for a in self.a_bits]
            _check_numbers('macs_per_cycle', self.macs_per_cycle, pairs)
        if self.memory is not None:
            self._set('memory', _part(Memory, 'memory', self.memory))
        if self.pj_per_operand_bit is not None:
            _check_numbers('pj_per_operand_bit', self.pj_per_operand_bit, ('w', 'a'))

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    @classmethod
    def load(cls, chip: str | Path) -> 'Chip':
        """One of :func:`chip_names`, or a JSON file of one's own.

        Raises:
            FileNotFoundError: No such file.
            ValueError: No such chip, or the file is damaged.
        """
        own = Path(chip).suffix == '.json'
        path = Path(chip) if own else FOLDER / f'{chip}.json'
        if not own and str(chip) not in chip_names():
            raise ValueError(
                f'chip: found {str(chip)!r}; accepted are {", ".join(chip_names())} '
                "and a JSON file of one's own, such as 'my_chip.json'"
            )
        check_file(str(path), 'chip')
        try:
            return _part(cls, '', strict_json(path.expanduser().read_text()))
        except ValueError as error:
            raise ValueError(f'chip {str(chip)!r}: {error}') from error

    def fitted(self, operand: str, bits: int) -> tuple[int, int]:
        """The width that ``bits`` of 'w' or 'a' take, and the number of such pieces.

        Examples:
            >>> chip = Chip.load('bit_fusion')
            >>> chip.fitted('w', 3), chip.fitted('w', 32)
            ((4, 1), (8, 4))
        """
        widths = self.w_bits if operand == 'w' else self.a_bits
        width = next((each for each in widths if each >= bits), widths[-1])
        return width, ceil(bits / width)


def chip_names() -> list[str]:
    """The chips that come with mmmpq."""
    return sorted(path.stem for path in FOLDER.glob('*.json'))


def _part(cls: type, key: str, data: Any) -> Any:
    prefix = f'{key}: ' if key else ''
    if not isinstance(data, Mapping):
        raise ValueError(f'{prefix}found {data!r:.80}; accepted is a dict of numbers')
    try:
        return cls(**data)
    except (KeyError, ValueError) as error:
        raise ValueError(f'{prefix}{error.args[0].lstrip(".")}') from error


def _check_positive(part: Any) -> None:
    for key, value in vars(part).items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f'{key}: found {value!r}; needed is a number above 0')


def _check_keys(
    key: str, found: Mapping, known: Sequence[str], needed: Sequence[str]
) -> None:
    for name in found:
        if name not in known:
            raise ValueError(f'{key}: unknown key {name!r}; {near(name, known)}')
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f'{key}: {missing[0]!r} is missing')


def _check_numbers(key: str, found: Mapping, names: Sequence[str]) -> None:
    _check_keys(key, found, names, needed=names)
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(
                f'{key}.{name}: found {value!r}; needed is a number above 0'
            )
