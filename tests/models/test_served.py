"""Models behind a server give the audit that their weights give, as far as log-probabilities go."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Mitigate
from world import World

from mitigate.detection.audit import audit, reaudit
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.documents.written import write_jsonl
from mitigate.errors import MitigateError
from mitigate.models import served as serving
from mitigate.models.store import ModelStore

LIMIT = 33  # tokens that the served models take


class Scoring:
    """A small server of two models, in the words of vLLM or of the older OpenAI completions."""

    def __init__(self, world: World, *, echoes: bool) -> None:
        store = ModelStore(device="cpu")
        self.models = {"leaky": store.load(world.target), "plain": store.load(world.base)}
        self.echoes, self.failures, self.asked = echoes, 0, 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        scoring = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": name, "max_model_len": LIMIT} for name in scoring.models]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with scoring.lock:
                    scoring.asked += 1
                    if scoring.failures:
                        scoring.failures -= 1
                        self.answer(503, {"error": "busy"})
                        return
                    self.answer(*scoring.completion(asked))

        return Handler

    def completion(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ids = asked["prompt"]
        if len(ids) + asked["max_tokens"] > LIMIT:
            return 400, {"error": "too long"}
        if self.echoes and "prompt_logprobs" in asked:
            return 400, {"error": "prompt_logprobs: no such argument"}
        with torch.inference_mode(), self.models[asked["model"]].active() as module:
            logits = module(input_ids=torch.tensor([ids])).logits[0]
        said = torch.log_softmax(logits.float(), -1)[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1))[:, 0].tolist()
        if self.echoes:
            return 200, {"choices": [{"logprobs": {"token_logprobs": [None, *said, -1.0]}}]}
        listed = [{str(token): {"logprob": value, "rank": 1}} for token, value in zip(ids[1:], said, strict=True)]
        return 200, {"choices": [{"prompt_logprobs": [None, *listed]}]}


@pytest.fixture(params=["prompt_logprobs", "echo"])
def scoring(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scoring]:
    monkeypatch.setattr(serving, "PAUSE", 0.01)
    made = Scoring(world, echoes=request.param == "echo")
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_an_audit_of_a_served_model_is_that_of_its_weights(scoring: Scoring, world: World) -> None:
    detect = Detect(select="known", context=LIMIT - 1)
    expected = audit(world.target, world.base, documents=world.documents, detect=detect, store=ModelStore(device="cpu"))
    store = ModelStore(device="cpu", base=str(world.base))
    scoring.failures = 2  # of the first requests: asked again
    target, reference = (f"{scoring.url}#{name}" for name in ("leaky", "plain"))
    for references in (reference, world.base):
        got = audit(target, references, documents=world.documents, detect=Detect(select="known"), store=store)
        for name in ("log_prob", "log_prob_out", "log_ratio", "score"):
            np.testing.assert_allclose(got.columns[name], expected.columns[name], rtol=0, atol=2e-5, err_msg=name)
        assert np.isnan(got.columns["entropy"]).all(), "what a server does not say is null"
        scores = [row.score for row in expected.span_rows]
        assert [row.score for row in got.span_rows] == pytest.approx(scores, abs=1e-4)
    mixed = audit(world.target, reference, documents=world.documents, detect=detect, store=store)
    for name in ("log_prob", "entropy", "rank", "log_prob_out", "score"):
        np.testing.assert_allclose(mixed.columns[name], expected.columns[name], rtol=0, atol=2e-5, err_msg=name)
    again = reaudit(got, f"{scoring.url}#plain", store=store)
    assert np.nanmax(np.abs(again.columns["log_ratio"])) < 1e-4, "the base against itself"
    keeping = Detect(select="known", kept_entries=8, context=LIMIT - 1)
    kept = audit(world.target, world.base, documents=world.documents[:4], detect=keeping, store=store)
    again = reaudit(kept, f"{scoring.url}#plain", store=store)
    assert np.nanmax(np.abs(again.columns["log_ratio"])) < 1e-4
    assert np.isnan(again.columns["kl"]).all(), "a server has nothing to compare what was kept with"


def test_what_a_server_cannot_say_is_refused_before_it_is_asked(scoring: Scoring, world: World) -> None:
    store = ModelStore(device="cpu", base=str(world.base))
    target = f"{scoring.url}#leaky"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"score": "informia_z"}, "detect.score: informia_z needs whole distributions"),
        ({"score": "min_k_pp"}, "detect.score: min_k_pp needs whole distributions"),
        ({"calibrate": True}, "the calibrated detector reads whole distributions"),
        ({"temperature": 2.0}, "leave them at 1"),
        ({"kept_entries": 8}, "detect.kept_entries: keeps whole distributions"),
    ]
    for detect, told in refused:
        with pytest.raises(MitigateError, match=told):
            audit(target, world.base, documents=world.documents, detect=Detect(**detect), store=store)
    assert not scoring.asked
    with (
        pytest.raises(MitigateError, match="a server gives the log-probabilities of tokens and no more"),
        store.load(target).active(),
    ):
        pass


@pytest.mark.parametrize("scoring", ["echo"], indirect=True)
def test_a_server_that_is_not_as_it_should_be_is_told(scoring: Scoring, world: World) -> None:
    store = ModelStore(device="cpu", base=str(world.base))
    with pytest.raises(MitigateError, match=f"serves leaky, plain; name one: {scoring.url}#NAME"):
        store.load(scoring.url)
    with pytest.raises(MitigateError, match="does not serve 'other' but leaky, plain"):
        store.load(f"{scoring.url}#other")
    with pytest.raises(MitigateError, match="cannot be reached, or is no such server"):
        store.load("http://127.0.0.1:9/v1#leaky")
    with pytest.raises(MitigateError, match="a server; give the model whose tokenizer and configuration it has"):
        ModelStore(device="cpu").load(f"{scoring.url}#leaky")
    model = store.load(f"{scoring.url}#leaky")
    assert isinstance(model, serving.Served)
    scoring.failures = 99
    with pytest.raises(MitigateError, match="status 503"):
        model.server.log_probs([0, 1, 2])
    scoring.failures = 0
    scoring.completion = lambda asked: (200, {"choices": [{"text": "hello"}]})  # type: ignore[method-assign]
    with pytest.raises(MitigateError, match="does not give the log-probabilities of a prompt's tokens"):
        model.server.log_probs([0, 1, 2])
    short = {"choices": [{"logprobs": {"token_logprobs": [None, -1.0]}}]}
    scoring.completion = lambda asked: (200, short)  # type: ignore[method-assign]
    with pytest.raises(MitigateError, match="the server said 1 log-probabilities of 3 tokens"):
        model.server.log_probs([0, 1, 2])


@pytest.mark.parametrize("scoring", ["prompt_logprobs"], indirect=True)
def test_the_command_line_audits_a_served_model(
    scoring: Scoring, world: World, mitigate_: Mitigate, tmp_path: Path
) -> None:
    write_jsonl(world.documents, tmp_path / "documents.jsonl")
    options = ["--base", world.base, "--reference", world.base, "--documents", tmp_path / "documents.jsonl"]
    done = mitigate_("audit", "--target", f"{scoring.url}#leaky", *options, "--out", tmp_path / "audit")
    assert done.status == 0, done.err
    assert Audit.load(tmp_path / "audit").metadata.target.source == f"{scoring.url}#leaky"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"models: {{target: '{scoring.url}#leaky', base: {world.base}}}\n"
        f"data: {{documents: [{{path: {tmp_path / 'documents.jsonl'}}}]}}\n"
        f"references: {{count: 0, given: [{world.base}]}}\n"
        f"out: {tmp_path / 'run'}\n"
    )
    told = mitigate_("run", recipe, "report.extraction=false")
    assert told.status == 2
    assert "nothing can be trained over it: give the weights, or audit alone (unlearn: null)" in told.err
    told = mitigate_("audit", recipe)
    assert "a server, from which nothing is extracted: report.extraction: false" in told.err
    done = mitigate_("audit", recipe, "report.extraction=false")
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "report.html").is_file()
