"""Settings of the server: what it shows, where it listens, and the limits of a request."""

from dataclasses import dataclass
from typing import Any

import simple_parsing

from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums


@dataclass
class ServeConfig:
    """Crosscoders to serve with their models, and the limits of a request."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder's folder, or a folder of several of one pair of models, such as `train` and `demo` write."""
    host: str = "127.0.0.1"
    """The address to listen on; any other than the default lets other machines reach the models."""
    port: int = 8000
    """The port to listen on; 0 takes a free one."""
    n_held_out_rows: int | None = None
    """Number of contexts that the explorer's figures and examples are made of, from those that training held out; by
    default all."""
    max_prompt_tokens: int = 512
    """Longest prompt, in tokens."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    max_passes: int = 64
    """Requests that run or wait; one runs at a time, and the next is refused."""
    max_body_bytes: int = 65_536
    """Longest body of a request."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, port=0, n_held_out_rows=1, max_prompt_tokens=1, max_new_tokens=1)
        validate_minimums(self, max_passes=1, max_body_bytes=1)
        if self.port > 65_535:
            raise ValueError(f"port={self.port} must be at most 65535.")

    @property
    def limits(self) -> "Limits":
        """The limits of a request."""
        return Limits(self.max_prompt_tokens, self.max_new_tokens, self.max_passes, self.max_body_bytes)


@dataclass(frozen=True)
class Limits:
    """The largest request that the server takes."""

    max_prompt_tokens: int = 512
    max_new_tokens: int = 128
    max_passes: int = 64
    max_body_bytes: int = 65_536
    max_top: int = 32
    """Latents listed per token."""
    max_edits: int = 8
    max_latents: int = 64
    """Latents of one edit."""
    max_coefficient: float = 1000.0
    """Size of an edit's coefficient."""
    max_temperature: float = 10.0

    def as_json(self) -> dict[str, Any]:
        """The limits by name."""
        return dict(vars(self))
