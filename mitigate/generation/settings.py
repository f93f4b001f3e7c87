"""Settings of sampling."""

from __future__ import annotations

from pydantic import Field, model_validator

from mitigate.mistakes import Section


class Sampling(Section):
    """How text is drawn from the target; the defaults are those of extraction studies (Carlini et al., 2012.07805)."""

    count: int | None = Field(
        None, ge=1, description="samples of each prompt; default: 1, or 32 from the start token (greedy always 1)"
    )
    max_tokens: int = Field(128, ge=1, description="longest continuation in tokens")
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 is greedy decoding")
    top_k: int | None = Field(40, ge=1, description="draw from the k likeliest tokens, 40 as in 2012.07805; null: all")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that make up this probability")
    batch_size: int = Field(32, ge=1, description="samples drawn at once; the samples do not depend on it")

    @model_validator(mode="after")
    def _draws_differ(self) -> Sampling:
        if self.temperature == 0 and (self.count or 1) > 1:
            raise ValueError("count: greedy decoding (temperature 0) gives the same text each time; leave count out")
        return self
