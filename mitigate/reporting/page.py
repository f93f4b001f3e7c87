"""The report as one HTML file: no network, nothing beside it, readable without JavaScript, on a phone and on paper.

Audited text is hostile and secret. Templates escape everything (autoescape), characters that mislead a reader are shown
as signs, and unless all text is to be shown, what is secret in it is masked wherever it turns up, also in ids, notes
and the recipe (`secrecy.Mask`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mitigate.detection.panel import as_judged
from mitigate.errors import MitigateError
from mitigate.reporting.cards import CLOSER, TOLERANCE
from mitigate.reporting.content import Report
from mitigate.reporting.figures import Figures, figure_text
from mitigate.reporting.heat_map import LEVELS, build_heat_map
from mitigate.reporting.judgement import CAUGHT, EXCESS, EXTRACTED, TOO_UNLIKELY
from mitigate.reporting.masking import Mask, visible
from mitigate.reporting.plots import against_references, reliability_curve, score_distribution
from mitigate.reporting.verdict import STATUS_WORDS, judge

if TYPE_CHECKING:
    from mitigate.detection.record import Audit

_MOST_SPANS = 25
_MOST_LINKED = 50
_MOST_SKIPPED = 50
_NATS = ("log_ratio", "log_ratio_clipped", "informia", "loss")


def render_report(
    report: Mapping[str, Any],
    before: Audit,
    after: Audit | None,
    *,
    text: str = "masked",
    mask: Mask | None = None,
) -> str:
    """The report page.

    Args:
        report: the content of report.json.
        before: the audit.
        after: the re-audit of the same documents; None if nothing was unlearned.
        text (`str`, *optional*, defaults to `masked`): what is shown of the documents: `none` of their text, text with
            its secrets `masked`, or `all`. It decides alone; `report["text"]` is not asked.
        mask (*optional*): one made before, of these audits; it decides in the place of `text`.

    Returns:
        A complete HTML document.

    Raises:
        MitigateError: the re-audit is of other documents or tokens; another `text`.
    """
    before, after, _ = as_judged(before, after)
    mask = mask or Mask([before, after] if after is not None else [before], text=text)
    report = _EMPTY | mask.report(report)
    figures = Figures(report)
    script = _source("report.js.j2")
    return _ENVIRONMENT.get_template("report.html.j2").render(
        report=report,
        created=str(report.get("created") or "").replace("T", " ").replace("+00:00", " UTC"),
        verdict=judge(figures),
        figures=figures,
        status_words=STATUS_WORDS,
        excess=EXCESS,
        caught=CAUGHT[1],
        extracted=EXTRACTED,
        too_unlikely=TOO_UNLIKELY[1],
        closer=CLOSER,
        tolerance=TOLERANCE,
        shown=mask.shown,
        heat=build_heat_map(before, after, mask=mask) if mask.shown != "none" else None,
        plots=[Markup(svg) for svg in _plots(before, after)],
        selected=_selected_spans(before, after, mask),
        labels=_labels(before, after, mask),
        models=_models(before, after, mask),
        most_linked=_MOST_LINKED,
        selection={"spans": 0, "tokens": 0, "documents": 0, "known_recall": None, "rule": ""}
        | (report["selected"] or {}),
        objective=_objective(report["unlearn"] or {}),
        recipe=yaml.safe_dump(report.get("recipe") or {}, sort_keys=False, allow_unicode=True, width=100).strip(),
        most_skipped=_MOST_SKIPPED,
        unit=_unit(before),
        levels=range(1, LEVELS + 1),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def heat_map(
    audit: Audit, *, doc_ids: Sequence[str] | None = None, text: str = "masked", most_documents: int = 40
) -> str:
    """The tokens of an audit's documents, shaded by score: an HTML fragment with its own style and no script.

    Args:
        audit: the audit.
        doc_ids (*optional*): the documents to draw, in this order. By default those with selected spans come first,
            by their highest span score, and a quarter of the places is kept for other documents.
        text (`str`, *optional*, defaults to `masked`): text with its secrets `masked`, or `all`.
        most_documents (`int`, *optional*, defaults to 40): documents to draw.

    Raises:
        MitigateError: an id that the audit does not have, or another `text`.
    """
    if text == "none":
        raise MitigateError("heat map: it is the documents' text, so none of it is no heat map; text is masked or all")
    mask = Mask([audit], text=text)
    heat = build_heat_map(audit, mask=mask, doc_ids=doc_ids, most_documents=most_documents)
    return _ENVIRONMENT.get_template("heat_map.html.j2").render(
        heat=heat, shown=text, unit=_unit(audit), levels=range(1, LEVELS + 1), with_style=True
    )


def _plots(before: Audit, after: Audit | None) -> list[str]:
    sides = {"before": before} | ({"after": after} if after is not None else {})
    groups, axis = zip(*(_score_groups(audit) for audit in sides.values()), strict=True)
    limits = _limits([values for group in groups for values in group.values()])
    drawn = [
        score_distribution(group, title=f"Scores {side}", axis=axis[0], limits=limits)
        for side, group in zip(sides, groups, strict=True)
    ]
    chosen = before.tokens["selected"].to_numpy(zero_copy_only=False).astype(bool)
    reference = _column(before, "log_prob_out")[chosen]
    models = {side: _column(audit, "log_prob")[chosen] for side, audit in sides.items()}
    every = np.concatenate([reference, *models.values()])
    if np.isfinite(every).any():
        lowest = float(np.floor(max(-20.0, np.nanquantile(every, 0.002))))
        lowest = min(lowest, -1.0)
        drawn += [
            against_references(reference, model, title=f"Selected tokens {side}", lowest=lowest)
            for side, model in models.items()
        ]
    calibration = before.metadata.calibration
    if calibration.kind == "shadows":
        drawn.append(reliability_curve(calibration.reliability, title="Reliability on the shadows"))
    return drawn


def _score_groups(audit: Audit) -> tuple[dict[str, np.ndarray], str]:
    """Known secrets by set where there are some that were never seen; else tokens by whether they are selected."""
    sets = audit.sets
    names = {"forget": "to forget", "retain": "retained", "holdout": "never seen"}
    known: dict[str, list[float]] = {}
    for span in audit.span_rows:
        name = sets[span.doc_id]
        if span.source == "known" and name in names:
            known.setdefault(names[name], []).append(span.score)
    if {"to forget", "never seen"} <= set(known):
        order = [name for name in ("to forget", "never seen", "retained") if name in known]
        return {name: np.array(known[name]) for name in order}, f"mean score of a known secret{_in(_unit(audit))}"
    score, selected = _column(audit, "score"), audit.tokens["selected"].to_numpy(zero_copy_only=False).astype(bool)
    other = ~selected & np.isfinite(score)
    return {"selected": score[selected], "other tokens": score[other]}, f"token score{_in(_unit(audit))}"


def _limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    every = np.concatenate([own[np.isfinite(own)] for own in values]) if values else np.zeros(0)
    if not every.size:
        return -1.0, 1.0
    low, high = np.quantile(every, [0.005, 0.995])
    room = max(0.5, 0.05 * (high - low))
    return float(np.floor(2 * (low - room)) / 2), float(np.ceil(2 * (high + room)) / 2)


def _selected_spans(before: Audit, after: Audit | None, mask: Mask) -> list[dict[str, Any]]:
    """The selected spans with the highest scores."""
    now = _scores_after(after)
    spans = [span for span in before.span_rows if span.selected]
    spans.sort(key=lambda span: (-(span.probability or 0.0), -span.score))
    return [
        {
            "doc_id": mask.text(span.doc_id),
            "label": mask.text(span.label),
            "text": mask.span(span.text(before.texts[span.doc_id])),
            "before": span.score,
            "after": now.get(span.span_id),
            "probability": span.probability,
            "q": span.q,
        }
        for span in spans[:_MOST_SPANS]
    ]


def _labels(before: Audit, after: Audit | None, mask: Mask) -> list[dict[str, Any]]:
    """The selected spans counted by label, with their mean scores."""
    now = _scores_after(after)
    grouped: dict[str, list[tuple[float | None, float | None]]] = {}
    for span in before.span_rows:
        if span.selected:
            grouped.setdefault(mask.text(span.label), []).append((span.score, now.get(span.span_id)))
    return [
        {
            "label": label,
            "spans": len(scores),
            "before": _mean([score for score, _ in scores]),
            "after": _mean([score for _, score in scores]),
        }
        for label, scores in sorted(grouped.items(), key=lambda item: -len(item[1]))
    ]


def _models(before: Audit, after: Audit | None, mask: Mask) -> list[dict[str, str]]:
    entries = [("Model before", before.metadata.target)]
    if after is not None:
        entries.append(("Model after", after.metadata.target))
    entries += [(f"Reference {number}", model) for number, model in enumerate(before.metadata.references, 1)]
    return [{"role": role, "name": mask.text(model.name), "fingerprint": model.fingerprint} for role, model in entries]


def _objective(unlearn: Mapping[str, Any]) -> str:
    """The weighted losses in words: `1 × hinge + 0.5 × distill`."""
    objective = unlearn.get("objective") or ""
    if not isinstance(objective, Mapping):
        return str(objective)
    weighted = all(isinstance(weight, int | float) for weight in objective.values())
    between = " × " if weighted else ": "
    terms = [(weight, name) if weighted else (name, weight) for name, weight in objective.items()]
    return (" + " if weighted else ", ").join(f"{left}{between}{right}" for left, right in terms)


def _scores_after(after: Audit | None) -> dict[int, float]:
    return {span.span_id: span.score for span in after.span_rows} if after is not None else {}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _column(audit: Audit, name: str) -> np.ndarray:
    """A token column as floats; null is NaN."""
    return audit.tokens[name].to_numpy(zero_copy_only=False).astype(float)


def _unit(audit: Audit) -> str:
    """The unit of the score that decided, or nothing where it has none."""
    return "nats" if audit.metadata.detect.score in _NATS else ""


def _in(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "not measured" if value is None else f"{figure_text(100 * value, digits)} %"


def _shown(value: Any) -> Any:
    """What a template writes: strings of others with misleading characters made visible."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _source(name: str) -> str:
    loader = _ENVIRONMENT.loader
    assert loader is not None
    return loader.get_source(_ENVIRONMENT, name)[0]


_EMPTY: dict[str, Any] = dict.fromkeys(Report.__annotations__)
_ENVIRONMENT = Environment(
    loader=PackageLoader("mitigate.reporting", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(number=figure_text, counted=_counted, percent=_percent)
