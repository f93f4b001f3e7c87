"""Results of `mitigate bench unlearn` as a table for the terminal and as a plot of forgetting against utility."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mitigate.artifacts.files import new_file
from mitigate.bench.world import world_line

_COLUMNS = {
    "secret_distance_ratio": "ratio",
    "token_oracle_distance_ratio": "tok.ratio",
    "other_moved_nats": "moved",
    "retain_gap_nats": "retain",
    "holdout_gap_nats": "holdout",
    "prose_gap_nats": "prose",
    "span_auc": "AUC",
    "tpr_at_1pct_fpr": "TPR@1%",
    "over_forgotten": "over-f.",
    "extraction_forget": "ext.forg",
    "extraction_retain": "ext.ret",
}
_COLORS = {"token": "#1b6ca8", "sequence": "#c1442e"}
_LINEAR_RATIO, _LINEAR_NATS = 1.0, 0.2  # up to here the axes are linear, beyond logarithmic
_LABEL_STEP = 0.028  # of the plot's height between two labels at the same place


def unlearn_table(results: Mapping[str, Any]) -> str:
    """Every method's figures, nearest to the oracle first in each scope, then what they are compared with."""
    lines = world_line(results)
    lines += [f"{'method':<22}" + "".join(f"{title:>10}" for title in _COLUMNS.values()) + f"{'steps':>7}{'s':>6}"]

    def add(name: str, row: Mapping[str, Any]) -> None:
        if "error" in row:
            lines.append(f"{name:<22}  failed: {row['error']}")
            return
        cells = "".join(f"{_shown(row.get(key, {}).get('value')):>10}" for key in _COLUMNS)
        took = "".join(
            f"{'' if row.get(key) is None else format(row[key], '.0f'):>{width}}"
            for key, width in (("steps", 7), ("seconds", 6))
        )
        lines.append(f"{name:<22}{cells}{took}".rstrip())

    for scope in ("token", "sequence"):
        found = {name: scopes[scope] for name, scopes in results["methods"].items() if scope in scopes}
        for name in sorted(found, key=lambda name: _ratio(found[name])):
            add(f"{name}, {scope}", found[name])
    lines.append("")
    add("default, recognised spans", results["recognised_spans"]["default"])
    add("default, known spans", results["known_spans"]["default"])
    for name, row in results["retrain"].items():
        add(f"retrain, {name}", row)
    add("before", results["before"])
    add("references' mean", results["matched"])
    for kind, row in results["oracle"].items():
        add(f"{kind} oracle", row)
    floor, before = results["floor"], results["before"]
    lines += [
        "",
        "distance on secret tokens, nats: before "
        f"{before['secret_distance']['value']:.3f}, floor {floor['secret_distance']['value']:.3f} (document oracles); "
        f"before {before['token_oracle_distance']['value']:.3f}, floor {floor['token_oracle_distance']['value']:.3f} "
        "(token oracles)",
    ]
    best = results["equal_forgetting"]["best"]
    if best is not None:
        ratio = "" if best["ratio"] is None else f", {best['ratio']:.1f} times ours"
        lines.append(f"equal forgetting: the best sequence method is {best['objective']}: {best['in_words']}{ratio}")
    share = results["adapter_share_at_1b"]
    lines.append(f"default adapter over {share['parameters'] / 1e9:.2f} B parameters: {share['share']:.2%} of them")
    return "\n".join(lines)


def draw_unlearn(results: Mapping[str, Any], path: Path) -> None:
    """Forgetting against utility (PNG): one labelled point a method and scope, its other tries faint."""
    figure, axes = plt.subplots(figsize=(11, 7.5), layout="constrained")
    points: list[tuple[float, float, str, str]] = []
    for name, scopes in results["methods"].items():
        for scope, row in scopes.items():
            color = _COLORS[scope]
            for tries in row["tries"].values():
                tested = [one["test"] for one in tries if "test" in one]
                axes.scatter(
                    [one["secret_distance_ratio"] for one in tested],
                    [one["holdout_gap_nats"] for one in tested],
                    s=14,
                    color=color,
                    alpha=0.2,
                    linewidths=0,
                )
            if "error" not in row:
                points.append((_ratio(row), row["holdout_gap_nats"]["value"], name, scope))
    axes.axvline(0, color="grey", linestyle=":", linewidth=1)
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    for scope, color in _COLORS.items():
        chosen = [point for point in points if point[3] == scope]
        if chosen:
            x, y = [point[0] for point in chosen], [point[1] for point in chosen]
            axes.scatter(x, y, s=46, color=color, label=f"{scope} scope")
    axes.scatter([1], [0], marker="s", s=50, color="black", label="before", zorder=3)
    axes.set_xlabel("distance to the document oracle on forgotten secrets (0: its floor, 1: as before)")
    axes.set_ylabel("rise of the loss on people never seen, nats per token")
    axes.set_title("Forgetting against utility: lower left is better")
    axes.legend(loc="best", fontsize=9)
    axes.set_xscale("symlog", linthresh=_LINEAR_RATIO, linscale=2.0)
    axes.set_yscale("symlog", linthresh=_LINEAR_NATS, linscale=1.5)
    axes.set_xticks(*_ticks(axes.get_xlim(), linear=_LINEAR_RATIO))
    axes.set_yticks(*_ticks(axes.get_ylim(), linear=_LINEAR_NATS))
    axes.minorticks_off()
    figure.canvas.draw()  # settles the axes: labels are placed in their units
    _label(axes, points)
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)


def _ticks(limits: tuple[float, float], *, linear: float) -> tuple[list[float], list[str]]:
    """Ticks in sight and what is written on them: quarters of the linear part, then 1, 2 and 5 of each decade."""
    beyond = [digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5)]
    positive = [linear * quarter / 4 for quarter in range(1, 5)] + [tick for tick in beyond if tick > linear]
    ticks = [tick for tick in (*(-tick for tick in positive[::-1]), 0.0, *positive) if limits[0] <= tick <= limits[1]]
    return ticks, [f"{tick:g}" for tick in ticks]


def _label(axes: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Names beside their points, moved up or down to where nothing lies, with a line back to the point."""
    to_axes = axes.transData + axes.transAxes.inverted()
    places = sorted(((*to_axes.transform((x, y)), name, scope) for x, y, name, scope in points), key=lambda p: p[1])
    taken = [(x - 0.008, x + 0.008, y) for x, y, *_ in places]
    for x, y, name, scope in places:
        width = 0.0095 * len(name)
        left = x + 0.012 if x + 0.012 + width < 1 else x - width - 0.012

        def free(height: float, left: float = left, right: float = left + width) -> bool:
            return not any(abs(height - at) < _LABEL_STEP and left < end and start < right for start, end, at in taken)

        steps = sorted(range(-40, 41), key=abs)
        heights = (y + _LABEL_STEP / 2 * step for step in steps)
        height = next((h for h in heights if _LABEL_STEP / 2 <= h <= 1 - _LABEL_STEP / 2 and free(h)), y)
        taken.append((left, left + width, height))
        axes.annotate(
            name,
            (x, y),
            xytext=(left, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8.5,
            color=_COLORS[scope],
            va="center",
            arrowprops={"arrowstyle": "-", "color": _COLORS[scope], "alpha": 0.35, "linewidth": 0.7},
        )


def _ratio(row: Mapping[str, Any]) -> float:
    value = row.get("secret_distance_ratio", {}).get("value")
    return float("inf") if value is None else float(value)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}"
