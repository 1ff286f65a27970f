"""Names from other people's files: printed safely, and checked before they become folder names."""

from collections.abc import Iterable

_MAX_SHOWN = 80


def printable_names(names: Iterable[str]) -> str:
    r"""Join names on one line that can neither fill a terminal nor control it.

    >>> printable_names(["W_dec", "\x1b[2J"])
    "'\\x1b[2J', W_dec"
    """
    ordered = sorted(names)
    shown = [name if name.isprintable() and len(name) <= _MAX_SHOWN else f"{name!r:.{_MAX_SHOWN}}" for name in ordered]
    more = [f"and {len(shown) - 20} more"] if len(shown) > 20 else []
    return ", ".join(shown[:20] + more)


def validate_folder_name(name: str, field: str) -> None:
    """Raise a ValueError unless `name` is a single folder name on every operating system.

    >>> validate_folder_name("k=8", "saes")
    >>> validate_folder_name("../k=8", "saes")
    Traceback (most recent call last):
    ValueError: saes contains the name '../k=8', which is not a folder name: use letters, digits and -_=+. only.
    """
    if name in ("", ".", "..") or len(name) > 100 or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        raise ValueError(
            f"{field} contains the name {name!r:.{_MAX_SHOWN}}, which is not a folder name: use letters, digits and "
            "-_=+. only."
        )
