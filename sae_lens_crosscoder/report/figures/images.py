"""Write figures as static images, with kaleido and an installed Chrome."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sae_lens_crosscoder.arguments import validate_arguments

if TYPE_CHECKING:
    import plotly.graph_objects

ImageFormat = Literal["png", "svg"]
WIDTH = 1100
_SCALE = 2


@validate_arguments
def write_images(
    figures: Mapping[str, "plotly.graph_objects.Figure"],
    folder: str | Path,
    formats: Sequence[ImageFormat] = ("png",),
) -> list[Path]:
    """Write every figure to `folder/NAME.FORMAT`, 1100 pixels wide (PNG at twice the resolution).

    Images need no network. One browser draws all of them.

    Raises:
        ValueError: for a format other than png and svg, or if the extra `images` or a browser is missing.
    """
    validate_formats(formats)
    if find_spec("kaleido") is None:
        raise ValueError(
            "Static images need kaleido: run pip install 'sae-lens-crosscoder[images]', or pass images=() for none."
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
        # MathJax would be downloaded, and interpret dollar signs in names.
        kaleido.write_fig_from_object_sync(jobs, cancel_on_error=True, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        raise ValueError(
            "Static images need Chrome or Chromium, and none was found: install it, set BROWSER_PATH to it, run "
            "kaleido_get_chrome, or pass images=() for none."
        ) from error
    return [job["path"] for job in jobs]


def validate_formats(formats: Sequence[str]) -> None:
    """Raise a ValueError unless all formats are known to `write_images`."""
    unknown = [kind for kind in formats if kind not in get_args(ImageFormat)]
    if isinstance(formats, str) or unknown:
        raise ValueError(f"images={formats!r} must be a list of formats from {get_args(ImageFormat)}, or ().")
