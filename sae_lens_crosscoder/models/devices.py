"""Devices of this machine, and their memory."""

import os

import torch


def device_name(device: str) -> str:
    """Normalize a device's name.

    >>> device_name("cuda"), device_name("cuda:1"), device_name("cpu")
    ('cuda:0', 'cuda:1', 'cpu')
    """
    parsed = torch.device(device)
    return f"cuda:{parsed.index or 0}" if parsed.type == "cuda" else parsed.type


def is_available(device: str) -> bool:
    """Tell whether this machine has the device."""
    parsed = torch.device(device)
    if parsed.type == "cpu":
        return True
    module = torch.get_device_module(parsed)
    return module.is_available() and (parsed.index or 0) < module.device_count()


def memory_of(device: str) -> int | None:
    """Bytes of memory of a device; None if it is not in this machine or of unknown size."""
    parsed = torch.device(device)
    if parsed.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if parsed.type == "cuda" and is_available(device):
        return torch.cuda.get_device_properties(parsed).total_memory
    return None
