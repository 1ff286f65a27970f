"""Names of a pair's models: choosing two of them, and comparing them with those that a crosscoder was trained on."""

from collections.abc import Sequence

from sae_lens_crosscoder.stacking import StackedLayout


def places_of_two(model_names: Sequence[str] | None, n_models: int, first: str, second: str) -> tuple[int, int]:
    """Places of two models, by their own names or by those of a layout.

    Raises:
        ValueError: unless these are two different models.

    >>> places_of_two(("small", "early", "late"), 3, "small", "model_2")
    (0, 2)
    """
    known = {name: m for m, name in enumerate(model_names or ())}
    known |= {name: m for m, name in enumerate(_places(n_models))}
    places = [known[name] for name in (first, second) if name in known]
    if len(set(places)) != 2:
        raise ValueError(
            f"first={first!r} and second={second!r} must be two of the models, which are {', '.join(known)}."
        )
    return places[0], places[1]


def place_of(model_names: Sequence[str] | None, n_models: int, name: str) -> int:
    """Place of a model by its own name or by that of a layout; `base` is the first and `chat` the last.

    Raises:
        ValueError: for another name.

    >>> place_of(("small", "early", "late"), 3, "early"), place_of(None, 3, "model_1"), place_of(None, 3, "chat")
    (1, 1, 2)
    """
    known = {"base": 0, "chat": n_models - 1}
    known |= {own: m for m, own in enumerate(model_names or ())}
    known |= {own: m for m, own in enumerate(_places(n_models))}
    if name not in known:
        raise ValueError(f"Unknown writer={name!r}: expected one of {', '.join(known)}.")
    return known[name]


def validate_two_members(model_names: Sequence[str] | None, n_models: int, purpose: str) -> None:
    """Raise a ValueError for more than two models, of which `purpose` cannot choose two."""
    if n_models > 2:
        names = model_names or _places(n_models)
        raise ValueError(
            f"{purpose} compares two models, but got {n_models}: {', '.join(names)}. Take two of them with "
            f"pair.of({names[0]!r}, {names[-1]!r})."
        )


def validate_trained_names(model_names: tuple[str, ...] | None, trained_on: tuple[str | None, ...]) -> None:
    """Raise a ValueError if a crosscoder was trained on models with other names; unknown names are accepted."""
    if model_names is None or None in trained_on or model_names == trained_on:
        return
    raise ValueError(
        f"This crosscoder was trained on {' and '.join(map(str, trained_on))}, but the pair is "
        f"{' and '.join(model_names)}. Load the pair that it was trained on."
    )


def _places(n_models: int) -> tuple[str, ...]:
    return StackedLayout((1,) * n_models).names
