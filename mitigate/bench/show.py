"""A detector benchmark's results as a table for the terminal and as figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from mitigate.artifacts.files import new_file
from mitigate.bench.world import world_line

_DRAWN = ("calibrated", "log_ratio_clipped", "log_ratio", "informia", "min_k_pp", "loss")


def detect_table(results: Mapping[str, Any]) -> str:
    """Every detector's figures, best span detector first, then the calibrated detector's own figures."""
    columns = (
        ("span", "auc", "span AUC"),
        ("span", "tpr_at_1pct_fpr", "TPR@1%"),
        ("span", "tpr_at_0.1pct_fpr", "TPR@.1%"),
        ("token", "auc", "token AUC"),
        ("document", "auc", "doc. AUC"),
        ("localisation", "auc", "local. AUC"),
        ("localisation", "ap", "local. AP"),
    )

    def shown(kind: str, key: str, name: str) -> str:
        value = results[kind].get(name, {}).get(key, {}).get("value")
        return "-" if value is None else f"{value:.3f}"

    names = sorted(results["span"], key=lambda name: -(results["span"][name]["tpr_at_1pct_fpr"]["value"] or 0))
    lines = world_line(results)
    lines += [f"{'detector':<18}" + "".join(f"{title:>11}" for *_, title in columns)]
    lines += [f"{name:<18}" + "".join(f"{shown(kind, key, name):>11}" for kind, key, _ in columns) for name in names]

    def line(title: str, figures: Mapping[str, float | None], *keys: str) -> str:
        parts = [f"{key} {'-' if figures[key] is None else format(figures[key], '.4f')}" for key in keys]
        return f"{title:<13}{', '.join(parts)}"

    lines += ["", line("calibration", results["calibration"], "ece", "realised_fdr", "recall")]
    lines.append(line("unaided", results["unaided"], "precision", "recall", "f1", "secret_recall", "non_member_share"))
    for name, own in results.get("by_guess", {}).items():
        lines.append(f"{name:<13}TPR@1% {own['tpr_at_1pct_fpr']:.3f} of {own['spans']:,.0f} spans")
    correlations = results.get("excess_correlation", {})
    lines.append(line("excess", correlations, *correlations))
    controls = {name: figure["value"] for name, figure in results["controls"].items()}
    lines.append(line("controls", controls, *controls))
    return "\n".join(lines)


def draw_detect(results: Mapping[str, Any], path: Path) -> None:
    """ROC curves with a logarithmic false positive rate, and the reliability of the stated probabilities (PNG)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    fpr = results["roc"]["fpr"]
    for name in _DRAWN:
        left.plot(fpr, results["roc"][name], label=name, linewidth=2.2 if name == "calibrated" else 1.2)
    left.plot(fpr, fpr, color="grey", linestyle=":", label="chance")
    left.set(xscale="log", xlabel="false positive rate", ylabel="true positive rate", xlim=(fpr[0], 1), ylim=(0, 1.01))
    left.set_title("Spans: members against non-members")
    left.legend(loc="lower right", fontsize=8)
    curve = results["calibration"]["reliability"]
    right.plot([0, 1], [0, 1], color="grey", linestyle=":")
    right.plot(curve["probability"], curve["share"], marker="o")
    for x, y, count in zip(curve["probability"], curve["share"], curve["count"], strict=True):
        right.annotate(f"{count:,}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=7, color="#555")
    right.set(xlabel="stated probability", ylabel="share of members", xlim=(0, 1), ylim=(0, 1.01))
    right.set_title(f"Reliability (expected calibration error {results['calibration']['ece']:.3f})")
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    plt.close(figure)
