"""What the datasets made by ``tools/dataset_converters`` share."""

from pathlib import Path


def require(path: str, data_root: str, converter: str) -> None:
    """Raises FileNotFoundError that says how to make the data if ``path`` is absent.

    Args:
        path (str): File or folder that the dataset is about to read.
        data_root (str): The dataset's ``data_root``, for the message.
        converter (str): Name of the script that makes the data.
    """
    if not Path(path).exists():
        raise FileNotFoundError(
            f"data_root='{data_root}': '{path}' does not exist. Make the data with: "
            f'python tools/dataset_converters/{converter} --out {data_root or "DIR"}'
        )
