"""Versions of packages, for the records of where results come from."""

from importlib.metadata import PackageNotFoundError, version

RECORDED = ("sae-lens-crosscoder", "sae-lens", "transformer-lens", "torch")
"""Packages that results depend on."""
NOT_INSTALLED = "not installed"


def package_versions(names: tuple[str, ...] = RECORDED) -> dict[str, str]:
    """Installed versions by package; `not installed` for a package that runs from its source tree.

    >>> package_versions(("no-such-package",))
    {'no-such-package': 'not installed'}
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED
