"""p-values and q-values against decoys: latents trained on a pair that does not differ in any aimed way."""

import torch
from jaxtyping import Float
from torch import Tensor

TAIL = 0.05
"""Share of the decoys' values that the exponential tail is fitted to."""
Q_LIMIT = 0.05


def tail_p_values(values: Float[Tensor, " latent"], decoys: Float[Tensor, " decoy"]) -> Float[Tensor, " latent"]:
    """Probability that a decoy reaches each value: counted in the body, exponential beyond the decoys' upper 5 %.

    Counting alone cannot give p-values below one over the number of decoys, too large for a few latents among many.

    Args:
        values: nan for latents without one; their p is nan.
        decoys: values of all latents of all decoys; nan are left out.

    Raises:
        ValueError: without a decoy's value.

    >>> decoys = torch.arange(1000.0)
    >>> [round(p, 4) for p in tail_p_values(torch.tensor([500.0, 949.05, 1100.0]), decoys).tolist()]
    [0.5, 0.05, 0.0001]
    """
    decoys = decoys[~decoys.isnan()].sort().values.double()
    if len(decoys) == 0:
        raise ValueError("The decoys have no finite value. Train them longer, or check the data.")
    start = decoys.quantile(1 - TAIL)
    beyond = decoys[decoys > start] - start
    mean = beyond.mean() if len(beyond) else beyond.new_zeros(())
    given = values.double()
    n_reached = len(decoys) - torch.searchsorted(decoys, given.nan_to_num(-torch.inf))
    counted = n_reached / len(decoys)
    # An all-equal body has no tail: nothing is beyond it by chance.
    fitted = TAIL * torch.exp(-(given - start) / mean.clamp(min=torch.finfo(torch.float64).tiny))
    p_values = torch.where(given > start, fitted.clamp(max=TAIL), counted.clamp(min=1 / len(decoys)))
    return torch.where(given.isnan(), torch.nan, p_values).to(values)


def false_discovery_rates(p_values: Float[Tensor, " latent"]) -> Float[Tensor, " latent"]:
    """Benjamini-Hochberg q-values: the least false discovery rate at which each latent would be named; nan stays nan.

    >>> false_discovery_rates(torch.tensor([0.01, 0.04, 0.5, torch.nan]))
    tensor([0.0300, 0.0600, 0.5000,    nan])
    """
    from scipy.stats import false_discovery_control

    q_values = p_values.clone()
    known = ~p_values.isnan()
    if known.any():
        q_values[known] = torch.from_numpy(false_discovery_control(p_values[known].double().numpy())).to(p_values)
    return q_values


def decoy_q_values(values: Float[Tensor, " latent"], decoys: Float[Tensor, " decoy"]) -> Float[Tensor, " latent"]:
    """False discovery rate of every latent's value, against the values of the decoys' latents."""
    return false_discovery_rates(tail_p_values(values, decoys))
