"""The objectives as a recipe names them: one, or several with weights. What they compute is in `catalogue`."""

from __future__ import annotations

from collections.abc import Mapping

from mitigate.errors import MitigateError

OBJECTIVE_NAMES = (
    *("hinge", "distill", "match", "consensus", "lens"),
    *("ascent", "grad_diff", "npo", "npo_token", "simnpo", "simnpo_token", "wga", "satimp", "undial"),
    *("dpo", "dpo_token", "idk", "substitute", "rmu"),
)
DEFAULT: Mapping[str, float] = {"match": 1.0, "consensus": 0.5}
SUBSTITUTES: Mapping[str, str] = {"dpo": "fake", "dpo_token": "fake", "idk": "placeholder", "substitute": "fake"}
"""Objective that learns another text in a secret's place -> which; see `secrets.redaction`."""


def parse_objective(objective: str | Mapping[str, float]) -> dict[str, float]:
    """Objective names with their weights: `hinge`, `hinge=1,distill=0.5`, a mapping, or `default` for our own mixture.

    Raises:
        MitigateError: an unknown name, a weight that is not a positive number, or objectives that do not go together.
    """
    if objective == "default":
        return dict(DEFAULT)
    if isinstance(objective, str):
        parts = [part.partition("=") for part in objective.split(",")]
        weights: list[tuple[str, object]] = [(name.strip(), weight.strip() or 1.0) for name, _, weight in parts]
    else:
        weights = list(objective.items())
    if not weights:
        raise MitigateError("unlearn.objective: names no objective; give one, or leave it out for the default")
    parsed: dict[str, float] = {}
    for name, weight in weights:
        if name in parsed:
            raise MitigateError(f"unlearn.objective: {name} stands there twice; give it one weight")
        if name == "default":
            own = ",".join(f"{part}={share:g}" for part, share in DEFAULT.items())
            raise MitigateError(f"unlearn.objective: default stands alone; with others, write its parts: {own}")
        if name not in OBJECTIVE_NAMES:
            raise MitigateError(
                f"unlearn.objective: {name!r} is not one of default, {', '.join(OBJECTIVE_NAMES)}; "
                "several are written with weights: hinge=1,distill=0.5"
            )
        try:
            parsed[name] = float(weight)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            parsed[name] = float("nan")
        if not 0 < parsed[name] < float("inf"):
            raise MitigateError(f"unlearn.objective: the weight of {name} is {weight!r}; give a positive number")
    kinds = {SUBSTITUTES[name] for name in parsed if name in SUBSTITUTES}
    if len(kinds) > 1:
        raise MitigateError(
            f"unlearn.objective: {', '.join(parsed)}: they want different texts in a secret's place "
            f"({', '.join(sorted(kinds))}); idk does not go with dpo or substitute"
        )
    return parsed
