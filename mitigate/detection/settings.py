"""Settings of the detector."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from mitigate.detection.scores import TOKEN_SCORES
from mitigate.detection.spans.threshold import SpanRule
from mitigate.mistakes import Section


class Detect(Section):
    """Settings of the detector."""

    score: str = Field("log_ratio_clipped", description="token score that decides; see mitigate.detection.scores")
    temperature: float = Field(1.0, gt=0, description="divides the logits of target and references in InfoRMIA")
    offline_a: float = Field(1.0, gt=0, le=1, description="InfoRMIA's offline correction over the vocabulary; 1: none")
    select: str = Field(
        "found",
        pattern="^(found|known)$",
        description="which spans are memorized: `found` by the detector, or the `known` sensitive ones as they stand",
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
        default_factory=lambda: SpanRule(), description="how bare token scores become spans (not those calibrated)"
    )
    context: int | None = Field(None, ge=2, description="window length in tokens; default: the model's")
    stride: int | None = Field(None, ge=1, description="tokens a next window adds; default: half the context")
    batch_tokens: int | None = Field(
        None, ge=1, description="padded tokens in a batch; default: as many as 256 MiB of logits, on a CPU 2,048"
    )

    @model_validator(mode="after")
    def _windows_overlap(self) -> Detect:
        if self.stride is not None and self.context is not None and self.stride >= self.context:
            raise ValueError(
                f"stride: {self.stride} is not less than the context, {self.context} tokens: a next window would leave "
                "out what stands before it"
            )
        return self

    @field_validator("score")
    @classmethod
    def _known_score(cls, score: str) -> str:
        if score not in TOKEN_SCORES:
            raise ValueError(f"{score!r} is not one of {', '.join(TOKEN_SCORES)}")
        return score
