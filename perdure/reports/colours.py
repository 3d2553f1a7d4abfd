"""Colours of the heat map: a ramp of one hue that stays legible to the colour-blind and in grey.

Lightness alone carries the value, rising in the dark mode and falling in the light one, and each
step has the ink, dark or white, that stands out best on it.
"""

from __future__ import annotations

from collections.abc import Sequence

STEPS = 51
RAMP_LIGHT = ("#f1f5f9", "#c3dcec", "#7db8d9", "#3587b8", "#14598a", "#0a3658")
RAMP_DARK = ("#1b232d", "#17435f", "#1f6a94", "#3f98c4", "#8accea", "#daf2fb")
INKS = ("#000000", "#ffffff")  # pure: the middle of the ramp leaves no more room


def ramp_css() -> list[dict[str, str]]:
    """`STEPS` steps of the heat map's colours, each with the ink that stands out best, by mode."""
    steps = []
    for step in range(STEPS):
        light, dark = heat(step / (STEPS - 1), RAMP_LIGHT), heat(step / (STEPS - 1), RAMP_DARK)
        steps.append({"light": light, "light_ink": ink(light), "dark": dark, "dark_ink": ink(dark)})
    return steps


def heat(share: float, ramp: Sequence[str]) -> str:
    """The colour at `share` (0 to 1) of a ramp, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(ramp) - 1)
    low = min(int(place), len(ramp) - 2)
    first, second = _rgb(ramp[low]), _rgb(ramp[low + 1])
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [c / 255 for c in _rgb(colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def ink(background: str) -> str:
    return max(INKS, key=lambda colour: contrast(background, colour))
