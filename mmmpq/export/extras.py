"""Packages that only some exports need."""

import importlib
import sys
from typing import Any

TELEMETRY = 'openvino_telemetry'


def deploy_extra(package: str) -> Any:
    """The module of a package of the extra `deploy`, or of `openvino`.

    OpenVINO is imported without what would tell its maker so, from a forked process.

    Raises:
        ValueError: It is not installed.
    """
    quiet = package == 'openvino' and TELEMETRY not in sys.modules
    if quiet:
        sys.modules[TELEMETRY] = None  # as if it were not installed
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f'ONNX: the package {package} is not installed; it comes with '
            f'pip install "mmmpq[{"openvino" if package == "openvino" else "deploy"}]"'
        ) from error
    finally:
        if quiet:
            del sys.modules[TELEMETRY]
