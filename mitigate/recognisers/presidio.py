"""Presidio's recognisers (microsoft.github.io/presidio), where it is installed: names of people and places too.

presidio_values("Mail Ann Smith", config=None, language="en", least_score=0.5)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from mitigate.errors import MitigateError
from mitigate.recognisers.values import Value, united


class NoPresidioError(MitigateError):
    """Presidio cannot be used as the recipe wants it: no fault of a row, so `on_error: skip` does not pass over it."""


def presidio_values(text: str, *, config: str | None, language: str, least_score: float) -> list[Value]:
    """What Presidio finds in a text, in order, its entity types in small letters; none overlaps another.

    Args:
        text: any text.
        config: its analyzer configuration (YAML), by default its own: English, with spaCy's `en_core_web_lg`.
        language: of the text, as in the configuration.
        least_score: of what is taken, from 0 to 1.

    Raises:
        NoPresidioError: it is not installed, has no language model, or does not know the language.
    """
    engine = _engine(config)
    try:
        found = engine.analyze(text=text, language=language, score_threshold=least_score)
    except ValueError as error:  # no recogniser of that language
        raise NoPresidioError(f"spans.language: {language!r}: {error}") from error
    return united([Value(one.start, one.end, one.entity_type.lower()) for one in found if one.start < one.end])


@cache
def _engine(config: str | None) -> Any:
    try:
        from presidio_analyzer import AnalyzerEngineProvider
    except ImportError as error:
        raise NoPresidioError(
            "spans.recognise: presidio is not installed: pip install presidio-analyzer, and a language model, as in "
            "python -m spacy download en_core_web_lg; or use recognise: built-in"
        ) from error
    try:
        return AnalyzerEngineProvider(analyzer_engine_conf_file=config).create_engine()
    except (Exception, SystemExit) as error:  # spaCy ends the process where a model cannot be downloaded
        raise NoPresidioError(
            f"spans.recognise: Presidio does not start ({type(error).__name__}: {error}); install the language model "
            "that its configuration names, or give another configuration (spans.presidio)"
        ) from error
