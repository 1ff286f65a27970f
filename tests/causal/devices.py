"""Several devices pretended on one: an operation on tensors of two of them fails as it would on two accelerators."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
# What may have its arguments on two devices: a tensor on an accelerator is indexed by masks and indices on the CPU.
_INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class PretendedDevices(TorchFunctionMode):
    """Inside, a tensor is where it was made or moved to; all numbers are computed on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # which is made anew at every look
            return where(args[0])
        if func is torch.Tensor.to:
            return self._moved(args, kwargs)
        if func is torch.Tensor.cpu:
            return placed(args[0].clone(), CPU)
        asked = kwargs.pop("device", None)
        tensors = list(_tensors([args, kwargs]))
        found = {where(tensor) for tensor in tensors if tensor.ndim > 0}
        if func in _INDEXING and found:
            found = {where(args[0])} | (found - {CPU})
        if len(found) > 1:
            raise RuntimeError(f"{func.__name__}: tensors on {sorted(map(str, found))}")
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and found - {CPU}:
            raise RuntimeError("numpy reads the CPU's tensors only")
        device = torch.device(asked) if asked is not None else next(iter(found), CPU)
        result = func(*args, **kwargs)
        for tensor in _tensors([result]):
            placed(tensor, device)
        return result

    def _moved(self, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, *rest = args
        device, kept = where(tensor), []
        for value in (*rest, kwargs.pop("device", None), kwargs.pop("other", None)):
            if isinstance(value, torch.Tensor):
                device, value = where(value), value.dtype
            elif isinstance(value, str | torch.device):
                device, value = torch.device(value), None
            if value is not None:
                kept.append(value)
        result = tensor.to(*kept, **kwargs) if kept or kwargs else tensor
        return result if device == where(tensor) and result is tensor else placed(result.clone(), device)


def where(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "pretended_device", CPU)


def placed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor.pretended_device = device  # type: ignore[attr-defined]
    return tensor


def place(module: torch.nn.Module, device: str) -> None:
    """Say that a model's or a crosscoder's weights are there."""
    for tensor in (*module.parameters(), *module.buffers()):
        placed(tensor, torch.device(device))
    if hasattr(module.cfg, "device"):
        module.cfg.device = device


def _tensors(values: Any) -> Any:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _tensors(value)
