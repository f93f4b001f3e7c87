"""Known spans that recognisers find: our own, and Presidio's, whose place here a stand-in or the real one takes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mitigate.documents import Documents, DocumentSource, Span, read_documents
from mitigate.errors import MitigateError
from mitigate.recognisers import presidio
from mitigate.recognisers.presidio import presidio_values
from mitigate.recognisers.values import Value

TEXT = "Ann Smith, ticket seven: call 555-0147 or mail ann@example.org."


@dataclass(frozen=True)
class Result:
    entity_type: str
    start: int
    end: int


class Analyzer:
    """Finds what it is told, and keeps what it was asked."""

    def __init__(self, *found: Result) -> None:
        self.found, self.asked = found, []  # type: ignore[var-annotated]

    def analyze(self, **asked: Any) -> list[Result]:
        self.asked.append(asked)
        if asked["language"] != "en":
            raise ValueError("No matching recognizers were found to serve the request.")
        return list(self.found)


@pytest.fixture(autouse=True)
def _no_engine_is_kept() -> Iterator[None]:
    presidio._engine.cache_clear()
    yield
    presidio._engine.cache_clear()


def stand_in(monkeypatch: pytest.MonkeyPatch, engine: Any) -> list[str | None]:
    """Presidio whose provider gives this engine, or raises it; the configurations that it was asked for."""
    configs: list[str | None] = []

    class AnalyzerEngineProvider:
        def __init__(self, analyzer_engine_conf_file: str | None = None) -> None:
            configs.append(analyzer_engine_conf_file)

        def create_engine(self) -> Any:
            if isinstance(engine, BaseException):
                raise engine
            return engine

    module = ModuleType("presidio_analyzer")
    module.AnalyzerEngineProvider = AnalyzerEngineProvider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    return configs


def read(path: Path, **spans: Any) -> Documents:
    path.write_text(json.dumps({"id": "a", "text": TEXT}) + "\n", encoding="utf-8")
    return read_documents(DocumentSource(path=str(path), spans=spans))


def found_in(documents: Documents) -> list[tuple[str, str]]:
    [document] = documents
    return [(document.text[span.start : span.end], span.label) for span in document.spans]


def test_our_own_recognisers_give_known_spans(tmp_path: Path) -> None:
    documents = read(tmp_path / "a.jsonl", recognise="built-in")
    assert found_in(documents) == [("555-0147", "phone"), ("ann@example.org", "email")]
    assert found_in(read(tmp_path / "a.jsonl")) == [], "a source that asks for none has none"


def test_a_file_that_marks_nothing_has_what_is_known_by_its_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A field with spans speaks for its row, an empty one too; a source that says what it wants is obeyed."""
    text = "Ring Nora at 555-201-4477 or write to nora.hale@mail.org."
    rows = [{"text": text}, {"text": f"Again: {text}", "spans": []}, {"text": f"Then: {text}", "spans": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))

    def labels(**settings: Any) -> list[list[str]]:
        return [
            [span.label for span in one.spans] for one in read_documents(DocumentSource(path=str(path), **settings))
        ]

    both = ["phone", "email"]
    caplog.set_level("INFO", logger="mitigate")
    assert labels() == [both, [], both]
    [told] = [line for line in caplog.messages if "known by their form" in line]
    assert "4 values" in told
    assert "(phone 2, email 2)" in told
    caplog.clear()
    assert labels(spans={}) == [[], [], []]
    assert labels(spans={"recognise": "built-in"}) == [both] * 3
    assert labels(spans={"patterns": {"number": r"\d{3}-\d{3}-\d{4}"}}) == [["number"]] * 3
    assert not any("known by their form" in line for line in caplog.messages)


def test_what_a_pattern_found_is_not_recognised_again(tmp_path: Path) -> None:
    documents = read(tmp_path / "a.jsonl", recognise="built-in", patterns={"line": r"\d{3}-\d{4} or"})
    assert found_in(documents) == [("555-0147 or", "line"), ("ann@example.org", "email")]


def test_presidio_gives_known_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Result("PERSON", 0, 9), Result("EMAIL_ADDRESS", 47, 62), Result("URL", 51, 62), Result("PERSON", 3, 3)]
    analyzer = Analyzer(*found)
    configs = stand_in(monkeypatch, analyzer)
    documents = read(tmp_path / "a.jsonl", recognise="presidio", presidio="own.yaml", least_score=0.7)
    assert found_in(documents) == [("Ann Smith", "person"), ("ann@example.org", "email_address")]
    read(tmp_path / "a.jsonl", recognise="presidio", presidio="own.yaml")
    assert configs == ["own.yaml"], "one engine for all documents"
    assert analyzer.asked[0] == {"text": TEXT, "language": "en", "score_threshold": 0.7}
    assert analyzer.asked[1]["score_threshold"] == 0.5


def test_presidio_that_cannot_be_used_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MitigateError, match=r"^spans.recognise: presidio is not installed: pip install.*built-in"):
        read(tmp_path / "a.jsonl", recognise="presidio")
    skipping = DocumentSource(path=str(tmp_path / "a.jsonl"), spans={"recognise": "presidio"}, on_error="skip")
    with pytest.raises(MitigateError, match="presidio is not installed"):
        read_documents(skipping)  # which would pass over every row
    stand_in(monkeypatch, SystemExit(1))
    with pytest.raises(MitigateError, match=r"Presidio does not start \(SystemExit: 1\); install the language model"):
        read(tmp_path / "a.jsonl", recognise="presidio")
    stand_in(monkeypatch, Analyzer())
    with pytest.raises(MitigateError, match=r"spans.language: 'xx': No matching recognizers"):
        read(tmp_path / "a.jsonl", recognise="presidio", language="xx")


def test_presidio_itself_finds_what_has_a_form(tmp_path: Path) -> None:
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    spacy = pytest.importorskip("spacy")
    model = tmp_path / "blank"
    spacy.blank("en").to_disk(model)
    config = tmp_path / "presidio.yaml"
    config.write_text(
        "supported_languages: [en]\nnlp_configuration:\n  nlp_engine_name: spacy\n"
        f"  models: [{{lang_code: en, model_name: {model}}}]\n",
        encoding="utf-8",
    )
    found = presidio_values(TEXT, config=str(config), language="en", least_score=0.5)
    assert Value(47, 62, "email_address") in found
    assert (
        Span(47, 62, "email_address")
        in next(iter(read(tmp_path / "a.jsonl", recognise="presidio", presidio=str(config)))).spans
    )
