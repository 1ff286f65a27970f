"""Parameters that two models have in common: one model given twice, or an adapter around its own base model."""

from torch import nn

from sae_lens_crosscoder.models.adapters import AdapterView


def shared_parameters(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of the second model's parameters whose memory is also a parameter of the first.

    Two adapters on one copy of the weights are two models on purpose, so they share none.

    >>> embedding = nn.Linear(2, 3)
    >>> shared_parameters(nn.Sequential(embedding), nn.Sequential(nn.Linear(3, 2), embedding))
    ['1.weight', '1.bias']
    """
    if isinstance(first, AdapterView) and isinstance(second, AdapterView) and first.adapter_name != second.adapter_name:
        return []
    addresses = {address for _, address in _addresses(first)}
    return [name for name, address in _addresses(second) if address in addresses]


def _addresses(model: nn.Module) -> list[tuple[str, tuple[str, int]]]:
    """Name and address of every parameter that is in memory."""
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.data_ptr() != 0]
    return [(name, (str(parameter.device), parameter.data_ptr())) for name, parameter in parameters]
