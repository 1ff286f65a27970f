"""Figures as static images, drawn by kaleido in a Chrome that is installed anyway."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import plotly.graph_objects

ImageFormat = Literal["png", "svg"]
WIDTH = 1100
_SCALE = 2


def write_images(
    figures: Mapping[str, "plotly.graph_objects.Figure"],
    folder: str | Path,
    formats: Sequence[ImageFormat] = ("png",),
) -> list[Path]:
    """Write every figure to `folder/NAME.FORMAT`, 1100 pixels wide (PNG at twice the resolution).

    No image asks the network for anything. One browser draws all.

    Raises:
        ValueError: for a format that is neither png nor svg, without the extra `images`, or without a browser.
    """
    require_formats(formats)
    if find_spec("kaleido") is None:
        raise ValueError(
            "Static images need kaleido, which is not installed: pip install 'sae-lens-crosscoder[images]', or ask for "
            "none with images=()."
        )
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = [
        {
            "fig": figure,
            "path": folder / f"{name}.{kind}",
            "opts": {
                "format": kind,
                "width": WIDTH,
                "height": figure.layout["height"],
                "scale": _SCALE if kind == "png" else 1,
            },
        }
        for name, figure in figures.items()
        for kind in formats
    ]
    try:
        # MathJax would come from the network, and read dollars in names.
        kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        raise ValueError(
            "Static images need a Chrome or Chromium, and none was found: install one, set BROWSER_PATH to it, or run "
            "kaleido_get_chrome; or ask for no images with images=()."
        ) from error
    return [job["path"] for job in jobs]


def require_formats(formats: Sequence[str]) -> None:
    """Raise a ValueError unless all are formats that `write_images` knows."""
    unknown = [kind for kind in formats if kind not in get_args(ImageFormat)]
    if isinstance(formats, str) or unknown:
        raise ValueError(f"images={formats!r} must be some of {get_args(ImageFormat)}, such as ('png',), or ().")
