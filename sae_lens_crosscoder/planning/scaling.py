"""How long a step takes on one device or on many: a cost model, with what it assumes.

A step is a product (the encoder's on all tokens), passes over memory (weights, moments, active pairs, rows), a fixed
part, and, of several processes, an exchange of so many bytes by so many collectives. Their seconds add up. What a
machine is capable of is a `Hardware`; that of the machine at hand, `training.calibration` measures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.planning.memory import bytes_of, is_dense, n_parameters
from sae_lens_crosscoder.storage.json_files import parse_json

ASSUMPTIONS = (
    "Nothing overlaps: product, memory, fixed part and exchange follow one another.",
    "Processes are equally fast and have a device and its memory to themselves; each pair of them has an equal link.",
    "Collectives send what rings send, and each takes the latency once, however many processes take part.",
    "Scores are screened once in a step, no latent is dead, and active pairs are spread evenly over the latents.",
    "Harvesting, logging and checkpoints take no time.",
)
"""What every estimate takes for granted."""

# How often a step goes over each parameter (gradient, its norm, and Adam's reads and writes), over each active pair's
# row of weights, over each row of activations (five arrays, written and read), and, when dense, over each number of a
# (batch, d_sae) array.
_PASSES_OVER_PARAMETERS, _PASSES_OVER_PAIRS, _PASSES_OVER_ROWS, _PASSES_OVER_DENSE = 11, 5, 10, 10
_PRODUCTS = {"sparse": 1, "dense": 5}
# Scores that processes send for every pair that is kept.
_SENT_PER_PAIR = 1.25


@dataclass(frozen=True)
class Hardware:
    """What each of the devices of a run is capable of, and what joins them."""

    flops: float | int
    """Per second, of the encoder's product in the precision that screening makes it in."""
    memory_bandwidth: float | int
    """Bytes per second, reading and writing taken together."""
    link_bandwidth: float | int
    """Bytes that a process sends per second."""
    latency: float | int
    """Seconds of a collective that sends next to nothing."""
    fixed_seconds: float | int
    """Of a step of next to nothing: Python, launches, waiting for small results."""
    efficiency: float | int
    """The share of `flops` and of `memory_bandwidth` that steps reach."""
    source: str
    """Where the figures come from."""
    flops_float32: float | int | None = None
    """`flops` of products in float32, as those of dense steps are; None where `flops` holds for these too."""

    def __post_init__(self) -> None:
        above_0 = ("flops", "memory_bandwidth", "link_bandwidth", "efficiency")
        for name in (*above_0, *(["flops_float32"] if self.flops_float32 is not None else [])):
            if not getattr(self, name) > 0:
                raise ValueError(f"Hardware with {name}={getattr(self, name)} never ends a step: it must be above 0.")
        for name in ("latency", "fixed_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Hardware with {name}={getattr(self, name)} ends before it begins: give seconds.")


FIGURES = tuple(field.name for field in fields(Hardware) if field.name != "source")
_MAY_BE_MISSING = {"flops_float32"}
_H200_SOURCE = (
    "not measured: the vendor's published peaks of an H200 SXM (bfloat16 without sparsity 989 TFLOP/s, float32 67 "
    "TFLOP/s, memory 4.8 TB/s, {link}), of which steps are assumed to reach {efficiency:.0%}; {latency:.0f} us per "
    "collective and {fixed:.0f} ms of fixed cost are assumed as well"
)


def _h200(link: str, link_bandwidth: float, latency: float) -> Hardware:
    efficiency, fixed = 0.5, 3e-3
    source = _H200_SOURCE.format(link=link, efficiency=efficiency, latency=latency * 1e6, fixed=fixed * 1e3)
    return Hardware(989e12, 4.8e12, link_bandwidth, latency, fixed, efficiency, source, flops_float32=67e12)


MACHINES = {
    "h200_node": _h200("NVLink 450 GB/s in one direction", 450e9, 2e-5),
    "h200_nodes": _h200("InfiniBand NDR 400 Gbit/s per device", 50e9, 5e-5),
}
"""Machines that are not here, by name: devices of one node, and devices of several."""


class StepTime(NamedTuple):
    """Seconds of a step, by what they are spent on."""

    product: float
    memory: float
    fixed: float
    link: float
    latency: float

    @property
    def seconds(self) -> float:
        return sum(self)


def step_time(sae: Any, batch: int, hardware: Hardware, n_data: int = 1, n_latents: int = 1) -> StepTime:
    """A step of one of `n_data * n_latents` processes, which share `batch` tokens and the crosscoder's latents.

    >>> from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
    >>> sae = L1CrosscoderTrainingConfig(d_model=2, d_sae=10)
    >>> slow = Hardware(1, 1, 1, latency=1, fixed_seconds=7, efficiency=1, source="")
    >>> step_time(sae, 8, slow).product  # five products, 2 operations for each of 8 * 4 * 10 factors
    3200.0
    """
    own_tokens, own_latents = batch / n_data, sae.d_sae / n_latents
    dense = is_dense(sae)
    products = _PRODUCTS["dense" if dense else "sparse"]
    flops = 2 * products * own_tokens * sae.d_in * own_latents
    numbers = _PASSES_OVER_PARAMETERS * n_parameters(sae) / n_latents + _PASSES_OVER_ROWS * own_tokens * sae.d_in
    if dense:
        numbers += _PASSES_OVER_DENSE * own_tokens * own_latents
    else:
        numbers += _PASSES_OVER_PAIRS * own_tokens * sae.k / n_latents * sae.d_in
    return StepTime(
        product=flops / (hardware.efficiency * _flops_per_second(sae, hardware)),
        memory=numbers * bytes_of(sae.dtype) / (hardware.efficiency * hardware.memory_bandwidth),
        fixed=hardware.fixed_seconds,
        link=step_traffic(sae, batch, n_data, n_latents) / hardware.link_bandwidth,
        latency=n_collectives(sae, n_data, n_latents) * hardware.latency,
    )


def _flops_per_second(sae: Any, hardware: Hardware) -> float | int:
    """In the precision of the crosscoder's product; hardware is taken to screen at its best, unless told otherwise."""
    in_float32 = (sae.dtype if is_dense(sae) else sae.screening) == "float32"
    return hardware.flops_float32 if in_float32 and hardware.flops_float32 is not None else hardware.flops


def in_turn(steps: Iterable[StepTime]) -> StepTime:
    """Steps of several crosscoders, one after another."""
    return StepTime(*map(sum, zip(*steps, strict=True)))


def step_traffic(sae: Any, batch: int, n_data: int, n_latents: int) -> int:
    """Bytes that one process sends in a step without dead latents.

    What n processes gather takes each of them (n - 1) / n of the result, and a sum twice that.

    >>> from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
    >>> sae = L1CrosscoderTrainingConfig(d_model=2, d_sae=10)  # 94 weights
    >>> step_traffic(sae, batch=8, n_data=2, n_latents=1)  # a sum of 94 floats and of 10 counts of 8 bytes
    456
    """
    number = bytes_of(sae.dtype)
    in_row, in_column, in_all = ((n - 1) / n for n in (n_latents, n_data, n_latents * n_data))
    activations = batch // n_data * sae.d_in * number
    own_latents = sae.d_sae // n_latents
    gradients = (n_parameters(sae) * number + 8 * sae.d_sae) * own_latents // sae.d_sae
    scores = _SENT_PER_PAIR * batch * getattr(sae, "k", 0) * number
    return int(3 * in_row * activations + 2 * in_column * gradients + in_all * scores)


def n_collectives(sae: Any, n_data: int, n_latents: int) -> int:
    """How many exchanges a step makes that are needed before it can go on.

    Among all: the gradient of b_dec, four words on whether all goes on and whether all is finite, and for BatchTopK two
    of scores and their smallest. Within a row: activations, reconstruction, gradient norm, and the mean score or the
    number of dead latents. Within a column: three gradients and the latents' counts.

    >>> from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
    >>> sae = L1CrosscoderTrainingConfig(d_model=2, d_sae=10)
    >>> n_collectives(sae, 1, 1), n_collectives(sae, 4, 1), n_collectives(sae, 1, 4), n_collectives(sae, 2, 2)
    (0, 9, 9, 13)
    """
    if n_data * n_latents == 1:
        return 0
    among_all = 8 if isinstance(sae, BatchTopKCrosscoderTrainingConfig) else 5
    return among_all + 4 * (n_latents > 1) + 4 * (n_data > 1)


def figures_from(text: str) -> dict[str, Any]:
    """Fields of a `Hardware`: all those of the machine with this name, or those that a JSON text holds.

    >>> figures_from('{"link_bandwidth": 25e9}')
    {'link_bandwidth': 25000000000.0}
    """
    if text in MACHINES:
        return asdict(MACHINES[text])
    if not text.lstrip().startswith("{"):
        raise ValueError(f"hardware={text!r} is not one of {', '.join(MACHINES)}, nor a JSON object of its figures.")
    return parse_json(text)


def hardware_of(figures: Mapping[str, Any]) -> Hardware | None:
    """The machine with these figures; None if some are missing, and are to be measured."""
    unknown = sorted(figures.keys() - {field.name for field in fields(Hardware)})
    if unknown:
        raise ValueError(f"Hardware has no {', '.join(unknown)}: its figures are {', '.join(FIGURES)}.")
    wrong = {name: value for name, value in figures.items() if name in FIGURES and not isinstance(value, int | float)}
    if wrong:
        raise ValueError(f"Hardware has numbers for figures, not {wrong}.")
    if set(FIGURES) - _MAY_BE_MISSING - figures.keys():
        return None
    named: dict[str, Any] = {"source": said(figures, "given"), **figures}
    return Hardware(**named)


def said(figures: Mapping[str, Any], how: str) -> str:
    """Figures in words.

    >>> said({"latency": 2e-05, "efficiency": 0.5}, "assumed")
    'assumed: latency 2e-05, efficiency 0.5'
    """
    return f"{how}: " + ", ".join(f"{name} {value:g}" for name, value in figures.items() if name != "source")
