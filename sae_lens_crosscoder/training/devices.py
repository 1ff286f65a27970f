"""Names of torch devices."""

import torch


def same_device(first: str, second: str) -> bool:
    """Tell if two names mean the same device; `cuda` is the first of its devices.

    >>> same_device("cuda", "cuda:0"), same_device("cuda:0", "cuda:1"), same_device("cpu", "cpu")
    (True, False, True)
    """
    devices = [_device(name) for name in (first, second)]
    return len({(device.type, device.index or 0) for device in devices}) == 1


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:  # torch's error for a name that it cannot parse
        raise ValueError(f"device={name!r:.80} is not a device name, such as 'cpu', 'cuda' or 'cuda:1'.") from error
