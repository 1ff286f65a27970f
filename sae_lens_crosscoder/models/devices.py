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


def is_slow_in_bfloat16(device: str) -> bool:
    """True for an x86 processor without instructions for bfloat16, on which one product is about 100 times as slow."""
    if torch.device(device).type != "cpu":
        return False
    known = torch.cpu.get_capabilities()
    is_x86 = known.get("architecture") in ("x86_64", "AMD64")
    return is_x86 and not (known.get("amx_bf16") or known.get("avx512_bf16"))
