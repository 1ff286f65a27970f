"""Worlds in which the latents that fine-tuning turned are known, read by crosscoders that reconstruct them exactly."""

import torch

from sae_lens_crosscoder.activations import ContrastRows
from sae_lens_crosscoder.analysis.changed.decoys import RandomMap, size_of_difference
from sae_lens_crosscoder.analysis.changed.name_latents import decoy_reading
from sae_lens_crosscoder.data.contrasts import second_halves
from tests.analysis.conftest import relu_crosscoder

D_MODEL, D_SAE, N = 48, 40, 240
CONCEPT = 7


def unit_rows(n, d, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def exact_crosscoder(base, chat):
    """Latents with these decoders, read by the pseudoinverse of the stack."""
    W_dec = torch.cat([base, chat], dim=1)
    return relu_crosscoder(W_dec, W_enc=torch.linalg.pinv(W_dec), d_models=(D_MODEL, D_MODEL))


class World:
    """Concept 7 fires on positive prompts alone. The chat model turns its direction by `angle` (radians), and every
    activation a little by a random map of the size `size`."""

    def __init__(self, angle=0.0, size=0.05, seed=0, rank=8):
        generator = torch.Generator().manual_seed(seed)
        self.base = unit_rows(D_SAE, D_MODEL, seed + 100)
        f = torch.rand(N, D_SAE, generator=generator, dtype=torch.float64)
        f = f * (torch.rand(N, D_SAE, generator=generator) < 0.3)
        self.positive = torch.arange(N) % 2 == 0
        f[:, CONCEPT] = self.positive * (2 + f[:, 0])
        rows = f @ self.base
        drift = RandomMap.draw(rows, size, rank, seed + 200)
        self.chat = drift.stack(self.base)[:, D_MODEL:].clone()
        turned = unit_rows(1, D_MODEL, seed + 300)[0]
        self.chat[CONCEPT] = (
            torch.cos(torch.tensor(angle)) * self.chat[CONCEPT] + torch.sin(torch.tensor(angle)) * turned
        )
        self.rows = torch.cat([rows, f @ self.chat], dim=1)
        self.crosscoder = exact_crosscoder(self.base, self.chat)
        self.contrast = ContrastRows(
            name="concept",
            activations=self.rows,
            positive=self.positive,
            held_out=second_halves(self.positive),
        )

    def decoys(self, n=3):
        """Readings of the crosscoders that reconstruct turned pairs exactly, and the size of their difference."""
        layout = self.crosscoder.layout
        size = size_of_difference(self.rows, [self.contrast], layout)
        maps = [RandomMap.draw(self.rows[:, :D_MODEL], size, rank, 400 + i) for i, rank in enumerate((8, 8, 32)[:n])]
        readings = []
        for each in maps:
            crosscoder = exact_crosscoder(self.base, each.stack(self.base)[:, D_MODEL:])
            readings.append(decoy_reading(crosscoder, [each.of_contrast(self.contrast, layout)]))
        return readings, size
