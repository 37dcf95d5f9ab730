"""In which ways a quantized layer computes."""

from enum import Enum


class Mode(Enum):
    """How a quantized layer computes: see :func:`.base.computing`.

    ``RECORDING`` is the plain float layer, too; it keeps a sample of its inputs.
    """

    QUANTIZED = 'quantized'
    FLOAT = 'float'
    RECORDING = 'recording'
