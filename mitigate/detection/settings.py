"""Settings of the detector and of the references that it judges by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mitigate.mistakes import Section
from mitigate.models.settings import Lora, Method, Schedule

TokenScore = Literal["informia", "informia_no_kl", "informia_z", "log_ratio", "log_ratio_clipped", "loss", "min_k_pp"]
"""The names in `mitigate.detection.scores.token.TOKEN_SCORES`."""


class SpanRule(Section):
    """When a stretch of tokens counts as memorized."""

    threshold: float = Field(0.4, description="least windowed score, in the score's own unit (nats)")
    window: int = Field(3, ge=1, description="tokens in the centred moving average")
    gap: int = Field(2, ge=0, description="stretches this many tokens apart or closer become one span")
    min_tokens: int = Field(2, ge=1, description="shorter spans are dropped")


class Detect(Section):
    """Settings of the detector."""

    score: TokenScore = Field(
        "log_ratio_clipped", description="token score that decides; see mitigate.detection.scores.token"
    )
    signals: Literal["all", "log_probs"] = Field(
        "all",
        description="`all`, or `log_probs`: what follows from the tokens' log-probabilities alone, which is faster the "
        "larger the vocabulary; then the score is log_ratio_clipped, log_ratio or loss, and nothing is calibrated",
    )
    temperature: float = Field(1.0, gt=0, description="divides the logits of target and references in InfoRMIA")
    offline_a: float = Field(1.0, gt=0, le=1, description="InfoRMIA's offline correction over the vocabulary; 1: none")
    select: Literal["exposed", "found", "known"] = Field(
        "exposed",
        description="what is to be unlearned: `exposed`: what the detector finds, and the known sensitive spans that "
        "the model knows better than models that never saw them; `found`: the former alone; `known`: the known spans "
        "as they stand",
    )
    fdr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="select spans at this false discovery rate; spans get probability and q. Needs 4 or more "
        "cross-fitted references, or holdout documents",
    )
    calibrate: bool = Field(False, description="give spans probability and q also where fdr does not choose them")
    min_score: float | None = Field(None, description="select only spans whose mean score reaches this, in nats")
    share: float | None = Field(None, gt=0, le=1, description="select only this share of the spans, strongest first")
    spans: SpanRule = Field(
        default_factory=SpanRule, description="how bare token scores become spans (not those calibrated)"
    )
    context: int | None = Field(None, ge=2, description="window length in tokens; default: the model's")
    stride: int | None = Field(None, ge=1, description="tokens a next window adds; default: half the context")
    kept_entries: int = Field(
        0,
        ge=0,
        description="likeliest entries of the references' distributions that are kept for each token, so that any "
        "re-audit runs the new model alone, also with fdr or a score that compares whole distributions; 0: none",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="padded tokens in a batch; default: as many as 15 % of a GPU's memory holds logits of, on a CPU "
        "of 256 MiB and at most 2,048",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Detect:
        if self.stride is not None and self.context is not None and self.stride >= self.context:
            raise ValueError(
                f"stride: {self.stride} is not less than the context, {self.context} tokens: a next window would leave "
                "out what stands before it"
            )
        if self.kept_entries == 1:
            raise ValueError("kept_entries: 1 is the token itself and nothing besides; take 256, or 0 to keep nothing")
        if self.kept_entries and self.signals == "log_probs":
            raise ValueError("kept_entries: signals: log_probs reads no distribution that could be kept; leave one out")
        return self


class ReferenceFit(Section):
    """How references are fitted."""

    lora: Lora = Field(default_factory=Lora, description="shape of the adapters")
    schedule: Schedule | Literal["auto"] = Field(
        "auto",
        description="auto: each is trained until it knows its documents as well as the target does; or as the target "
        "was trained, where that is known",
    )


class ReferenceSettings(ReferenceFit):
    """Models that never saw a document, to judge it by."""

    given: list[str] = Field(default_factory=list, description="reference models that saw none of the documents")
    count: int = Field(
        8,
        ge=0,
        le=1000,
        description="references to cross-fit on the base; even; 0 for none. Of fewer than 8 none is left to judge what "
        "unlearning made of the others",
    )
    method: Method = Field("lora", description="lora: adapters that share the base; full: models")
