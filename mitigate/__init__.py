"""Find what a language model memorized, token by token. Remove just that. Prove it.

    from mitigate import audit, unlearn, verify

The names below load their modules when first used; importing the package does nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Audit": "mitigate.detection.record",
    "Comparison": "mitigate.verification.compare",
    "Detect": "mitigate.detection.settings",
    "Document": "mitigate.documents",
    "DocumentSource": "mitigate.documents",
    "Documents": "mitigate.documents",
    "MitigateError": "mitigate.errors",
    "ModelStore": "mitigate.models.store",
    "Recipe": "mitigate.recipe.schema",
    "References": "mitigate.detection.references.crossfit",
    "Request": "mitigate.documents",
    "Retain": "mitigate.unlearning.settings",
    "Span": "mitigate.documents",
    "Unlearn": "mitigate.unlearning.settings",
    "Unlearned": "mitigate.unlearning.trainer",
    "audit": "mitigate.detection.audit",
    "audit_generated": "mitigate.generation.audit",
    "audit_parts": "mitigate.detection.parts.audit",
    "bench_detect": "mitigate.bench.detect.run",
    "compare": "mitigate.verification.compare",
    "compare_fine_tunes": "mitigate.verification.fine_tunes",
    "crossfit_references": "mitigate.detection.references.crossfit",
    "load_recipe": "mitigate.recipe.loading",
    "load_references": "mitigate.detection.references.crossfit",
    "prove": "mitigate.proof.prove",
    "read_documents": "mitigate.documents",
    "reaudit": "mitigate.detection.audit",
    "retrain": "mitigate.retraining.retrain",
    "run": "mitigate.pipeline.run",
    "unlearn": "mitigate.unlearning.trainer",
    "verify": "mitigate.verification.compare",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mitigate' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
