"""Lower layers that several models have in common, run once per batch: those below an adapter, or of equal weights."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from sae_lens.util import extract_layer_from_tlens_hook_name
from torch import Tensor, nn

from sae_lens_crosscoder.models.adapters import shared_model_of
from sae_lens_crosscoder.models.equal_blocks import equal_blocks

# Arguments of a pass under which the lower layers' activations depend on the tokens alone.
_SHARING_ARGUMENTS = {"stop_at_layer", "prepend_bos", "attention_mask"}


@contextmanager
def lower_layers_once(models: Iterable[Any], arguments: Iterable[str]) -> Generator[None]:
    """Context in which `run_with_cache` runs the blocks that models share for the first of them only.

    All models must read the same tokens. Without effect for models that share no blocks, for hooks on those blocks, and
    for arguments of the pass that may make the models differ.
    """
    members = list(models)
    blocks = shared_blocks(members) if set(arguments) <= _SHARING_ARGUMENTS else []
    if not any(blocks):
        yield
        return
    lower = LowerPass(blocks)
    with ExitStack() as replacements:
        for m, model in enumerate(members):
            run = partial(lower.run, m, model.run_with_cache)
            replacements.enter_context(_replaced([model], "run_with_cache", run))
        yield


def shared_blocks(models: Iterable[Any]) -> list[Sequence[nn.Module]]:
    """For each model, its first blocks, as many as give the activations that the first model's give."""
    members = list(models)
    shared = shared_model_of(members)
    if shared is None:
        return equal_blocks(members)
    return [shared.lower_blocks if shared.can_share() else []] * len(members)


class LowerPass:
    """The outputs of the first model's lower blocks, recorded in its pass for the models that share them.

    Args:
        blocks: of each model, those that it shares with the first; of the first, as many as any other does.
    """

    def __init__(self, blocks: Sequence[Sequence[nn.Module]]) -> None:
        self.blocks = blocks
        self.hidden: dict[int, Any] = {}
        self.tokens = torch.zeros(0, dtype=torch.long)
        self.result: tuple[Any, Any] = (None, {})

    def run(self, m: int, run: Callable[..., Any], tokens: Tensor, names_filter: Sequence[str], **kwargs: Any) -> Any:
        """Run the pass of model `m`: the first model's in full, the others' from where they differ from it."""
        if m == 0:
            self.tokens, self.result = tokens, self._run_first(run, tokens, names_filter, kwargs)
            return self.result
        own = self.blocks[m]
        n_lower, stop = len(own), kwargs.get("stop_at_layer")
        layers = {name: _layer_of(name) for name in names_filter}
        lower = [name for name, layer in layers.items() if 0 <= layer < n_lower]
        if n_lower == 0 or not self._has_read(lower, tokens):
            return run(tokens, names_filter=names_filter, **kwargs)
        is_below = stop is not None and 0 <= stop <= n_lower
        if is_below and len(lower) == len(layers):
            return self.result
        if is_below or n_lower not in self.hidden:
            return run(tokens, names_filter=names_filter, **kwargs)
        upper = [name for name in layers if name not in set(lower)]
        with _replaced(own, "forward", lambda *_, **__: self.hidden[n_lower]):
            output, cache = run(tokens, names_filter=upper, **kwargs)
        of_first = self.result[1]
        return output, {name: of_first[name] for name in lower} | {name: cache[name] for name in upper if name in cache}

    def _has_read(self, names: Iterable[str], tokens: Tensor) -> bool:
        """True if the first model read these tokens at these hooks; models of aligned tokenizers read others."""
        is_same = self.tokens is tokens or (self.tokens.device == tokens.device and torch.equal(self.tokens, tokens))
        return is_same and all(name in self.result[1] for name in names)

    def _run_first(self, run: Callable[..., Any], tokens: Tensor, names_filter: Sequence[str], options: Any) -> Any:
        def record(n_lower: int, module: nn.Module, args: Any, output: Any) -> None:
            self.hidden[n_lower] = output

        counts = {len(blocks) for blocks in self.blocks[1:]} - {0}
        handles = [self.blocks[0][n - 1].register_forward_hook(partial(record, n)) for n in counts]
        try:
            return run(tokens, names_filter=names_filter, **options)
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _replaced(modules: Iterable[Any], name: str, method: Callable[..., Any]) -> Generator[None]:
    """Context in which a method of some modules is another."""
    own = [(module, vars(module).get(name)) for module in modules]
    try:
        for module, _ in own:
            vars(module)[name] = method  # a bridge's plain assignment would set it on Hugging Face's module
        yield
    finally:
        for module, previous in own:
            if previous is None:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = previous


def _layer_of(hook_name: str) -> int:
    layer = extract_layer_from_tlens_hook_name(hook_name)
    return -1 if layer is None else layer
