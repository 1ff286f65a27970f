"""The colours of classes and verdicts, in figures, tables and the explorer."""

COLOURS = {
    "base_only": "#2f6fb5",
    "shared": "#8d949e",
    "chat_only": "#d9601a",
    "other": "rgba(141,148,158,0.5)",
    "base_specific": "#2f6fb5",
    "chat_specific": "#d9601a",
    "complete_shrinkage": "#8a5fb8",
    "latent_decoupling": "#1b9a83",
    "rotated": "#b03a6b",
    "rare": "#c9a227",
    "negligible": "rgba(141,148,158,0.5)",
    "undetermined": "rgba(141,148,158,0.5)",
    "undefined": "rgba(141,148,158,0.5)",
    "dead": "rgba(141,148,158,0.5)",
}
"""One hue for base, one for chat, grey for shared or unknown, and other hues for artifacts."""


def colour_rules(declared: str) -> str:
    """CSS that sets one property, such as `background`, to the colour of each class and verdict."""
    return "".join(f".{name} {{ {declared}: {hue}; }}\n" for name, hue in COLOURS.items())
