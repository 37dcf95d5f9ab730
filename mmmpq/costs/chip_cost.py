"""Time and energy of a layer on an accelerator, from its numbers."""

from math import ceil, prod, sqrt
from pathlib import Path

from mmmpq.arguments import checks_arguments
from mmmpq.costs.chip import Chip, Pass, chip_names
from mmmpq.costs.cost import Cost
from mmmpq.costs.profile import LayerProfile
from mmmpq.policy import SKIP, Precision
from mmmpq.registry import COSTS
from mmmpq.units import LADDERS

_RUNS_AS = {
    'conv': ('conv',),
    'pointwise': ('pointwise', 'conv'),
    'depthwise': ('depthwise', 'conv'),
    'linear': ('linear', 'pointwise', 'conv'),
}


def compute_cycles(chip: Chip, layer: LayerProfile, precision: Precision) -> float:
    """Clock cycles in which the array computes.

    With the pass of the layer's kind, of I inputs (times what narrow operands pack), O
    outputs, P positions and T taps, an input of p output positions takes, in each group
    of c to d channels, ::

        ceil(p/P) ceil(d/O) (ceil(c/I) ceil(k/T) (cycles · w · a + overhead) + drain)

    where k is the elements of the kernel, and w and a are there if they are serial.
    Lanes that a layer has no channels for are idle; groups follow one another, unless
    the chip has a depthwise pass.
    """
    (w, w_pieces), (a, a_pieces) = _widths(chip, precision)
    pieces = w_pieces * a_pieces
    if chip.macs_per_cycle is not None:
        return layer.macs * pieces / chip.macs_per_cycle[f'W{w}A{a}']
    if not layer.macs:
        return 0.0
    shape, sizes = layer.shape, layer.shape['input_sizes']
    groups, taps = shape['groups'], prod(shape['kernel_size'])
    fan_in, fan_out = shape['in_channels'] // groups, shape['out_channels'] // groups
    of_an_input = layer.macs / (fan_in * taps * fan_out * groups)
    of_an_input /= sum(count * prod(size) for size, count in sizes.items())
    total = 0.0
    for size, count in sizes.items():
        kind = next(k for k in _RUNS_AS[_kind(layer, size)] if k in chip.passes)
        part = chip.passes[kind]
        blocks, channels = groups * _tiles(part, size, of_an_input), fan_out
        if kind == 'depthwise':
            blocks, channels = blocks // groups, shape['out_channels']
        lanes, bits = part.inputs, pieces
        for operand, width, widest in (('w', w, chip.w_bits), ('a', a, chip.a_bits)):
            lanes *= widest[-1] // width if operand in part.packs else 1
            bits *= width if operand in part.serial else 1
        steps = ceil(fan_in / lanes) * ceil(taps / part.taps)
        if fan_in <= part.unfold:
            steps = ceil(fan_in * taps / lanes)
        outs = ceil(channels / part.outputs)
        busy = part.cycles * bits * (channels if part.in_turn else outs)
        cycles = steps * (busy + part.overhead * outs) + part.drain * outs
        total += count * blocks * cycles
    return total


def traffic_bits(chip: Chip, layer: LayerProfile, precision: Precision) -> float:
    """Bits between the chip and its memory: weights and inputs read, outputs written.

    What does not fit into its buffer is read in parts, in the cheapest of three orders:
    for each part of the weights all inputs; for each part of the inputs all weights;
    for each block of n by m sums, of N channels at M positions, the weights and inputs
    that it needs, which reads all weights M/m and all inputs N/n times.
    """
    if chip.memory is None or not layer.calls:
        return 0.0
    (w, w_pieces), (a, a_pieces) = _widths(chip, precision)
    memory, shape, calls = chip.memory, layer.shape, layer.calls
    weights, inputs = layer.weights * w * w_pieces, layer.activations * a * a_pieces
    outputs = layer.macs * shape['groups'] / shape['in_channels']
    outputs /= prod(shape['kernel_size'])
    if 'Transpose' in layer.type:
        outputs *= prod(shape['stride'])
    weights, inputs_of_call = weights * calls, inputs / calls
    reads = [
        weights + inputs * _parts(weights / calls, memory.weight_buffer),
        inputs + weights * _parts(inputs_of_call, memory.input_buffer),
    ]
    if memory.sums is not None and weights:
        channels = shape['out_channels']
        positions = outputs / channels / calls
        best = sqrt(memory.sums * inputs * channels / (weights * positions))
        n = round(min(max(best, 1, memory.sums / positions), channels, memory.sums))
        m = memory.sums // n
        reads.append(weights * ceil(positions / m) + inputs * ceil(channels / n))
    return min(reads) + outputs * (memory.output_bits or a * a_pieces)


@checks_arguments()
class ChipCost(Cost):
    """A cost on an accelerator.

    Args:
        chip: Its name, or a JSON file with the keys of :class:`mmmpq.costs.chip.Chip`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No chip is named, there is none of that name, or its file is
            damaged.
    """

    def __init__(self, chip: str | Path | None = None) -> None:
        if chip is None:
            raise ValueError(
                f'{type(self).__name__}.chip is missing; accepted are '
                f"{', '.join(chip_names())} and a JSON file of one's own; on a command "
                "line, 'bit_fusion: W4A4' or 'my_chip.json: 5 ms'"
            )
        self.chip = Chip.load(chip)
        self.said = dict(chip=str(chip))


@COSTS.register_module()
class ChipLatency(ChipCost):
    """Microseconds of a layer: it computes while it reads and writes, and so takes the
    longer of the two (the roofline).

    Source: Roofline: An Insightful Visual Performance Model for Multicore
    Architectures, CACM 2009.

    Examples:
        >>> ChipLatency('bit_fusion').unit
        'us'
    """

    unit = 'us'
    units = {'us': 1.0, **LADDERS['us']}

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        return 1e6 * max(self._cycles(layer, precision)) / self.chip.clock_hz

    def waits(self, layer: LayerProfile, precision: Precision) -> bool:
        """Whether it takes longer to read and write than to compute."""
        computes, moves = self._cycles(layer, precision)
        return moves > computes

    def _cycles(self, layer: LayerProfile, precision: Precision) -> tuple[float, float]:
        if precision == SKIP:
            return 0.0, 0.0
        memory = self.chip.memory
        moves = 0.0
        if memory is not None:
            moves = traffic_bits(self.chip, layer, precision) / memory.bits_per_cycle
        return compute_cycles(self.chip, layer, precision), moves


@COSTS.register_module()
@checks_arguments()
class ChipEnergy(ChipCost):
    """Joules of a layer: cycles in which it computes, operands read, bits moved."""

    unit = 'J'
    units = {'pJ': 1e-12, 'nJ': 1e-9, 'uJ': 1e-6, 'µJ': 1e-6, 'mJ': 1e-3, 'J': 1.0}

    def __init__(self, chip: str | Path | None = None) -> None:
        super().__init__(chip)
        if self.chip.pj_per_cycle is None:
            known = [n for n in chip_names() if Chip.load(n).pj_per_cycle is not None]
            raise ValueError(
                f'ChipEnergy.chip: found {str(chip)!r}, whose energy is not known (it '
                f'has no pj_per_cycle); accepted are {", ".join(known)}'
            )

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        if precision == SKIP:
            return 0.0
        chip = self.chip
        pj = compute_cycles(chip, layer, precision) * chip.pj_per_cycle
        if chip.memory is not None and chip.memory.pj_per_bit is not None:
            pj += traffic_bits(chip, layer, precision) * chip.memory.pj_per_bit
        for operand, each in (chip.pj_per_operand_bit or {}).items():
            width, pieces = chip.fitted(operand, getattr(precision, f'{operand}_bits'))
            pj += layer.macs * width * pieces * each
        return 1e-12 * pj


def _widths(chip: Chip, precision: Precision) -> tuple[tuple[int, int], ...]:
    return chip.fitted('w', precision.w_bits), chip.fitted('a', precision.a_bits)


def _parts(bits: float, buffer: int | None) -> int:
    return 1 if buffer is None else max(ceil(bits / buffer), 1)


def _kind(layer: LayerProfile, size: tuple[int, ...]) -> str:
    if layer.type.startswith('Depthwise'):
        return 'depthwise'
    if not size:
        return 'linear'
    return 'pointwise' if prod(layer.shape['kernel_size']) == 1 else 'conv'


def _tiles(part: Pass, size: tuple[int, ...], ratio: float) -> int:
    """Blocks of positions of an output that has ``ratio`` times those of its input."""
    if isinstance(part.positions, list) and len(part.positions) == len(size):
        sides = (max(round(side * ratio ** (1 / len(size))), 1) for side in size)
        return prod(ceil(s / p) for s, p in zip(sides, part.positions, strict=True))
    at_once = part.positions
    at_once = prod(at_once) if isinstance(at_once, list) else at_once
    return ceil(max(round(prod(size) * ratio), 1) / at_once)
