"""Figures of the report as SVG text that takes the page's ink colour, works offline and is equal for equal data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from mitigate.detection.metadata import Reliability

_INK = "#010203"  # stands for the page's text colour, which is dark or light
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#8A8A8A")  # Okabe and Ito's, told apart by the colour-blind
_DASHES = ("solid", "dashed", "dashdot", "dotted")
_MOST_POINTS = 1500
_STEPS = 30
_SIZE = (4.7, 2.9)  # inches: one of two columns on a desk, the full width of a phone


def score_distribution(groups: Mapping[str, np.ndarray], *, title: str, axis: str, limits: tuple[float, float]) -> str:
    """How the scores of several groups are distributed.

    Args:
        groups: name -> (n,) scores; NaN is left out. Four groups at most.
        title: what is drawn.
        axis: what a score is, with its unit.
        limits: the scores at both ends; scores beyond are counted at the ends.

    Returns:
        SVG text.
    """
    figure, axes = _canvas(title)
    edges = np.linspace(*limits, _STEPS + 1)
    for (name, values), colour, dash in zip(groups.items(), _COLOURS, _DASHES, strict=False):
        values = np.clip(values[np.isfinite(values)], *limits)
        if not values.size:
            continue
        heights = np.histogram(values, bins=edges)[0] / values.size
        axes.stairs(heights, edges, fill=True, color=colour, alpha=0.18)
        axes.stairs(heights, edges, color=colour, linestyle=dash, linewidth=1.6, label=f"{name} ({values.size:,})")
    if limits[0] < 0 < limits[1]:
        axes.axvline(0, color=_INK, linewidth=0.8, alpha=0.5)
    axes.set_xlabel(axis)
    axes.set_ylabel("share of the group")
    axes.set_xlim(*limits)
    _legend(axes)
    return _svg(figure, title)


def against_references(reference: np.ndarray, model: np.ndarray, *, title: str, lowest: float) -> str:
    """Log-probability of tokens under the model against the references that never saw them.

    The diagonal is the control: a model that never saw the tokens either.

    Args:
        reference: (n,) nats.
        model: (n,) nats.
        title: what is drawn.
        lowest: the least log-probability on both axes; lower ones are drawn at the edge.

    Returns:
        SVG text. At most 1,500 evenly picked tokens are drawn.
    """
    figure, axes = _canvas(title)
    known = np.flatnonzero(np.isfinite(reference) & np.isfinite(model))
    if known.size > _MOST_POINTS:
        known = known[np.linspace(0, known.size - 1, _MOST_POINTS).astype(int)]
    x, y = np.maximum(reference[known], lowest), np.maximum(model[known], lowest)
    axes.plot([lowest, 0], [lowest, 0], color=_INK, linewidth=0.9, alpha=0.6, label="as if never seen")
    axes.plot(
        x,
        y,
        linestyle="none",
        marker="o",
        markersize=3,
        markeredgewidth=0,
        color=_COLOURS[0],
        alpha=0.45,
        label="selected token",
    )
    axes.set_xlabel("log-probability under the references (nats)")
    axes.set_ylabel("under the model (nats)")
    axes.set_xlim(lowest, 0.03 * -lowest)
    axes.set_ylim(lowest, 0.03 * -lowest)
    _legend(axes)
    return _svg(figure, title)


def reliability_curve(curve: Reliability, *, title: str) -> str:
    """Stated probability against the share of members, on shadows that the attack model did not see.

    Args:
        curve: of an audit calibrated by shadows.
        title: what is drawn.

    Returns:
        SVG text.
    """
    figure, axes = _canvas(title)
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.9, alpha=0.6, label="as stated")
    x, y = curve.probability, curve.share
    axes.plot(x, y, marker="o", markersize=4, color=_COLOURS[1], linewidth=1.4, label="shadows")
    axes.set_xlabel("stated probability")
    axes.set_ylabel("share of members")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _svg(figure, title)


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
        axes.spines[side].set_alpha(0.5)
    axes.tick_params(colors=_INK, labelsize=8.5)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK)


def _svg(figure: Figure, title: str) -> str:
    """SVG for the inside of a page: no prolog, no metadata, no addresses, ids of its own."""
    stream = StringIO()
    figure.savefig(stream, format="svg")
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href").replace(_INK, "currentColor")
    names: dict[str, str] = {}
    for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))):
        names[name] = f"{number}"
    plain = re.sub(r'\bid="([^"]+)"|#([\w-]+)(?=["\)])', lambda match: names.get(match[1] or match[2], ""), svg)
    prefix = "p" + sha256(plain.encode()).hexdigest()[:8]

    def renamed(match: re.Match[str]) -> str:
        if match[1]:
            return f'id="{prefix}-{names[match[1]]}"'
        return f"#{prefix}-{names[match[2]]}" if match[2] in names else match[0]

    svg = re.sub(r'\bid="([^"]+)"|#([\w-]+)(?=["\)])', renamed, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1)
