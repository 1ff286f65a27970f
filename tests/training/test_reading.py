"""The encoder that a polish starts from reads the codes of a pursuit as well as a linear one can."""

import torch

from sae_lens_crosscoder.crosscoders.causality import WeakCausality
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.nesting import Nesting, nesting_of, separated
from sae_lens_crosscoder.training.polishing.reading import reading_rows
from tests.reference import reading as ref

NO_NESTING = Nesting(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))


def acausal(W_dec):
    """Hooks of latents that read and write everything."""
    return LatentHooks(StackedLayout((W_dec.shape[1],)), WeakCausality.over(1, len(W_dec)))


def sparse_codes(n_tokens, n_atoms, seed=0, rate=0.2):
    generator = torch.Generator().manual_seed(seed)
    sizes = 1 + 0.25 * torch.randn(n_tokens, n_atoms, generator=generator, dtype=torch.float64)
    return sizes * (torch.rand(n_tokens, n_atoms, generator=generator) < rate)


def atoms(n, width, seed=1):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_are_the_regression_of_the_codes_on_the_tokens():
    codes, W_dec = sparse_codes(300, 7), atoms(7, 4)
    codes[:, 5] = 0
    codes[19:, 6] = 0  # fires on too few tokens
    x = codes @ W_dec + 0.3
    found, _ = reading_rows(x, *pairs_of(codes), W_dec, acausal(W_dec), NO_NESTING)
    expected = ref.reading_rows(x.tolist(), codes.tolist(), W_dec.tolist())
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((found * W_dec).sum(dim=1), torch.ones(7, dtype=torch.float64))


def test_codes_of_independent_atoms_are_read_exactly():
    """Along the atoms themselves they would not be: these are far from orthogonal."""
    codes, W_dec = sparse_codes(400, 4), torch.eye(4, dtype=torch.float64) + 0.5
    rows, _ = reading_rows(codes @ W_dec, *pairs_of(codes), W_dec, acausal(W_dec), NO_NESTING)
    assert (codes @ W_dec @ rows.T - codes).abs().max() < 0.1
    along = W_dec / W_dec.square().sum(dim=1, keepdim=True)
    assert (codes @ W_dec @ along.T - codes).abs().max() > 0.5


def test_a_latent_of_chat_alone_is_silent_where_the_concept_is_in_both_models():
    """A decoupled concept has three atoms: in both models, in base alone, in chat alone; one fires per token."""
    both, base, chat = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    which = torch.randint(5, (2000,), generator=generator)
    codes = torch.nn.functional.one_hot(which, 5)[:, :3].double() * sparse_codes(2000, 1, rate=1.0)
    W_dec = torch.stack([both, base, chat])
    x = codes @ W_dec
    rows, _ = reading_rows(x, *pairs_of(codes), W_dec, acausal(W_dec), NO_NESTING)
    assert (rows[2] @ chat - 1).abs() < 1e-9
    assert rows[2] @ both < 0.5 < chat @ both


def test_rows_read_the_codes_of_the_separated_decoder():
    """Moving a parent's share into its child changes the parent's code, not the reconstruction."""
    codes = sparse_codes(600, 4, rate=0.3)
    codes[:, 1] *= codes[:, 0] > 0
    codes[:, 0] += 0.5 * codes[:, 1]
    W_dec = atoms(4, 6)
    nesting = nesting_of(*pairs_of(codes))
    assert (nesting.parent.tolist(), nesting.child.tolist()) == ([0], [1])
    for share in (1.0, 0.5):
        moved = codes.clone()
        moved[:, 0] -= share * nesting.slope[0] * codes[:, 1]
        after = separated(W_dec, nesting, share)
        found, _ = reading_rows(codes @ W_dec, *pairs_of(codes), after, acausal(after), nesting, share)
        expected = ref.reading_rows((moved @ after).tolist(), moved.tolist(), after.tolist())
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8)
