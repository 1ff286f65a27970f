"""Mean differences and principal components of chat - base: the baselines that need no training."""

import torch

from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections, measured_directions
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows
from sae_lens_crosscoder.arguments import validate_arguments


@validate_arguments
@torch.no_grad()
def mean_difference(rows: DifferenceRows, *, against: str | None = None) -> DifferenceDirections:
    """The mean of chat - base in each group, or the contrast of each group with one of them.

    Args:
        rows: without groups, the one direction is the mean over all rows.
        against: a group whose mean difference is taken from the others' and becomes the bias. It is what tuning does
            everywhere; the direction is what it does in the group beyond that.

    Raises:
        ValueError: for an unknown or empty group, or models that do not differ.
    """
    _validate_different(rows)
    means = {
        name: rows.group(name).double().mean(dim=0)
        for i, name in enumerate(rows.names)
        if rows.labels is not None and bool((rows.labels == i).any())
    }
    if against is not None:
        bias = rows.group(against).double().mean(dim=0)
        means = {f"{name} - {against}": mean - bias for name, mean in means.items() if name != against}
    else:
        bias = torch.zeros(rows.difference.shape[1], dtype=torch.float64)
        means = means or {"all": rows.difference.double().mean(dim=0)}
    if not means:
        raise ValueError(f"Only the group {against!r} has tokens, so there is nothing to compare with it.")
    return measured_directions("mean_difference", list(means), torch.stack([*means.values()]), bias, rows.difference)


@validate_arguments
@torch.no_grad()
def difference_pca(rows: DifferenceRows, n_components: int = 10) -> DifferenceDirections:
    """Principal components of chat - base over all rows: unit directions, the mean difference as their bias.

    Each points to the side on which activations reach farther, so that its largest activations are positive.

    Args:
        rows: chat - base of at least two tokens.
        n_components: number of components, the largest first; no more than the rows and the width allow.

    Raises:
        ValueError: for fewer than one component or two rows, or models that do not differ.
    """
    if n_components < 1 or len(rows.difference) < 2:
        raise ValueError(
            f"n_components={n_components} of {len(rows.difference)} rows: pass at least 1 component and 2 rows."
        )
    _validate_different(rows)
    bias = rows.difference.double().mean(dim=0)
    covariance = torch.zeros(len(bias), len(bias), dtype=torch.float64)
    for block in rows.difference.split(4096):
        covariance += (block.double() - bias).T @ (block.double() - bias)
    n_components = min(n_components, len(bias), len(rows.difference) - 1)
    components = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:n_components]
    coordinates = (rows.difference.double() - bias) @ components.T
    signs = torch.where(coordinates.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    names = [f"component {i + 1}" for i in range(n_components)]
    return measured_directions("pca", names, components * signs[:, None], bias, rows.difference)


def _validate_different(rows: DifferenceRows) -> None:
    if not bool(rows.difference.any()):
        raise ValueError(
            "The models' activations are identical on all tokens, so the difference has no direction. Check that the "
            "chat model is the tuned one, and that tuning changed a layer before the hook."
        )
