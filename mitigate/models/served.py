"""Models behind a scoring server: log-probabilities of given tokens, from a vLLM- or OpenAI-compatible endpoint.

    target = ModelStore(base="its-base").load("http://127.0.0.1:8000/v1#my-model")

What follows # is the name that the server has for the model; where it serves one only, nothing need follow. Tokens are
cut here, by the tokenizer of `base`, and sent as ids. Nothing but the tokens' own log-probabilities comes back, so such
a model is audited by the scores that need no more, and not trained, sampled or made to complete anything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from mitigate.errors import MitigateError, first_line
from mitigate.models.model import Model
from mitigate.models.probes import stated_limits
from mitigate.models.shared_base import SharedBase
from mitigate.runtime import progress

AT_ONCE = 8  # requests
TRIES, PAUSE = 4, 1.0  # of a request that fails for a reason that passes; seconds before the second, doubled then
TIMEOUT = 300.0  # seconds
_PASSING = (429, 500, 502, 503, 504)
_REFUSED = (400, 404, 422)


class Server:
    """An endpoint and one of the models behind it.

    Args:
        url: up to and with `/v1`.
        model: its name there; None where it is the only one.

    Raises:
        MitigateError: the server cannot be reached, or does not have that model.
    """

    def __init__(self, url: str, model: str | None) -> None:
        self.url = url.rstrip("/")
        listed = self._ask("models").get("data") or []
        names = [str(one.get("id")) for one in listed if isinstance(one, dict)]
        if model is None and len(names) != 1:
            raise MitigateError(f"{url}: serves {', '.join(names) or 'no model'}; name one: {url}#NAME")
        if model is not None and model not in names:
            raise MitigateError(f"{url}: does not serve {model!r} but {', '.join(names) or 'no model'}")
        self.model = model or names[0]
        limits = [one.get("max_model_len") for one in listed if one.get("id") == self.model]
        self.limit = next((int(limit) for limit in limits if isinstance(limit, int)), None)
        self._echoes: bool | None = None  # answers to `echo`, and not to `prompt_logprobs`; None before the first

    def log_probs(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T,) log p(x_t | x_<t) in nats of a text's tokens, NaN for the first.

        Raises:
            MitigateError: the server fails, or says nothing of a token.
        """
        asked = {"model": self.model, "prompt": list(map(int, ids)), "max_tokens": 1, "temperature": 0.0}
        if self._echoes is None:
            try:
                found = _of_prompt(self._ask("completions", {**asked, "prompt_logprobs": 0}), ids)
            except _NotUnderstoodError:
                found = None
            self._echoes = found is None
            if found is not None:
                return found
        if self._echoes:
            found = _of_echo(self._ask("completions", {**asked, "echo": True, "logprobs": 1}), ids)
        else:
            found = _of_prompt(self._ask("completions", {**asked, "prompt_logprobs": 0}), ids)
        if found is None:
            raise MitigateError(
                f"{self.url}: does not give the log-probabilities of a prompt's tokens (neither prompt_logprobs, as "
                "vLLM does, nor echo with logprobs)"
            )
        return found

    def _ask(self, what: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with; asked again where a failure may pass."""
        data = None if content is None else json.dumps(content).encode()
        request = Request(f"{self.url}/{what}", data=data, headers={"Content-Type": "application/json"})
        for attempt in range(TRIES):
            last = attempt + 1 == TRIES
            try:
                with urlopen(request, timeout=TIMEOUT) as answer:
                    found = json.load(answer)
                if not isinstance(found, dict):
                    raise MitigateError(f"{self.url}/{what}: answers with {type(found).__name__}, not a JSON object")
                return found
            except HTTPError as error:
                said = first_line(ValueError(error.read().decode(errors="replace")))
                if error.code in _REFUSED and content is not None and "prompt_logprobs" in content:
                    raise _NotUnderstoodError(f"{self.url}: {said}") from None
                if last or error.code not in _PASSING:
                    raise MitigateError(f"{self.url}/{what}: status {error.code} ({said})") from None
            except (URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
                if last:
                    raise MitigateError(
                        f"{self.url}/{what}: cannot be reached, or is no such server ({first_line(error)})"
                    ) from None
            time.sleep(PAUSE * 2**attempt)
        raise AssertionError("the last try answers or raises")


class _NotUnderstoodError(MitigateError):
    """The server does not take `prompt_logprobs`."""


@dataclass(frozen=True)
class Served(Model):
    """A model behind a server; see the module.

    Attributes:
        server: where it is.
        size, longest: V and the context in tokens, as its base's configuration and the server say.
    """

    server: Server
    size: int
    longest: int

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """There is no module.

        Raises:
            MitigateError: always.
        """
        raise MitigateError(
            f"{self.name}: a server gives the log-probabilities of tokens and no more; to train or sample the model, "
            "or to compare whole distributions (informia, min_k_pp, detect.fdr), give its weights"
        )
        yield

    @property
    def device(self) -> torch.device:
        """Of what comes back."""
        return torch.device("cpu")

    @property
    def vocabulary_size(self) -> int:
        """V, as the configuration of its base says."""
        return self.size

    @property
    def context(self) -> int:
        """Longest sequence, in tokens."""
        return self.longest

    def log_probs(self, texts: Sequence[np.ndarray], *, description: str) -> list[np.ndarray]:
        """(T,) nats of each text's tokens, NaN for the first; several texts are asked at once.

        Raises:
            MitigateError: the server fails.
        """
        found: list[np.ndarray] = []
        first = [self.server.log_probs(text) for text in texts[:1]]  # settles how this server is asked
        total = sum(map(len, texts))
        with progress(total, description, unit="tok") as bar, ThreadPoolExecutor(AT_ONCE) as pool:
            for text, said in zip(texts, [*first, *pool.map(self.server.log_probs, texts[1:])], strict=True):
                found.append(said)
                bar.update(len(text))
        return found


def served(source: str, *, name: str, fingerprint: str, base: str, tokenizer: PreTrainedTokenizerBase) -> Served:
    """The model behind a URL.

    Args:
        source: `http://HOST:PORT/v1`, or with `#NAME` behind it.
        name: what messages and reports call it.
        fingerprint: of the source.
        base: what has its tokenizer and configuration.
        tokenizer: of the base.

    Raises:
        MitigateError: as `Server`; or the base has no configuration.
    """
    url, _, model = source.partition("#")
    server = Server(url, model or None)
    try:
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise MitigateError(f"{base}: no config.json there ({first_line(error)}), which says V of {source}") from None
    limits = [*stated_limits(config), *([server.limit - 1] if server.limit else [])]  # one token is always added
    return Served(
        name=name,
        source=source,
        fingerprint=fingerprint,
        base=cast(SharedBase, None),
        adapters=(),
        tokenizer=tokenizer,
        server=server,
        size=int(config.get_text_config().vocab_size),
        longest=min(limits, default=1024),
    )


def _of_prompt(answer: dict[str, Any], ids: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """What vLLM's `prompt_logprobs` says; None where the answer has none."""
    choices = answer.get("choices") or [{}]
    listed = choices[0].get("prompt_logprobs") or answer.get("prompt_logprobs")
    if not listed:
        return None
    return _checked([_entry(one, int(token)) for one, token in zip(listed, ids, strict=False)], ids)


def _entry(said: Any, token: int) -> float | None:
    entry = said.get(str(token)) if isinstance(said, dict) else None
    value = entry.get("logprob") if isinstance(entry, dict) else entry
    return None if value is None else float(value)


def _of_echo(answer: dict[str, Any], ids: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """What `echo` with `logprobs` says, as OpenAI's completions had it; None where the answer has none."""
    choices = answer.get("choices") or [{}]
    listed = (choices[0].get("logprobs") or {}).get("token_logprobs")
    return None if not listed else _checked([None if x is None else float(x) for x in listed[: len(ids)]], ids)


def _checked(values: Sequence[float | None], ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The values as an array.

    Raises:
        MitigateError: one is missing besides the first.
    """
    if len(values) != len(ids) or any(value is None for value in values[1:]):
        raise MitigateError(
            f"the server said {sum(value is not None for value in values)} log-probabilities of {len(ids)} tokens; it "
            "reads the prompt otherwise than it is sent (its tokenizer, or a token that it adds)"
        )
    return np.array([np.nan, *values[1:]], dtype=np.float64)
