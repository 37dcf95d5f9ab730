"""What exported files run in here."""

from mmmpq.export.latency.bench import Session


def session_of(runtime: str) -> type[Session]:
    """That of 'onnxruntime' or 'openvino'.

    Raises:
        ValueError: It is not installed.
    """
    if runtime == 'onnxruntime':
        return Session
    from mmmpq.export.latency.openvino import OpenVINOSession

    return OpenVINOSession
