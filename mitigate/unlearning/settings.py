"""Settings of unlearning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mitigate.mistakes import Section
from mitigate.models.settings import Lora

Scope = Literal["token", "sequence"]


class Retain(Section):
    """How everything that is not to be forgotten is held where it was."""

    anchor: Literal["auto", "kl", "nll", "hidden", "none"] = Field(
        "auto",
        description="what holds a kept token: KL(p_0 || p), nll (its likelihood), hidden (its hidden state), none; "
        "auto: what the objective was published with, kl for ours",
    )
    weight: float | None = Field(
        None,
        ge=0,
        description="weight of the anchors' mean; with a budget, where the weight starts; default: what the objective "
        "was published with, 10 for ours",
    )
    budget: float | None = Field(
        None,
        gt=0,
        description="nats: the anchors' mean stays at or under this; their weight is then a dual variable, not fixed",
    )
    trust: float | None = Field(
        0.1,
        gt=0,
        description="nats a token: where text that kl anchors hold has moved by more, and moves further, the learning "
        "rate falls by a fifth a step, and rises back when that ends; null: it does not",
    )
    focus: float | None = Field(
        None,
        ge=1,
        description="weight of kept tokens that the audit found memorized, to others' 1: forgetting takes them first; "
        "default: 4 for our objectives, 1 for published ones",
    )
    generated: int = Field(
        0,
        ge=0,
        description="texts to draw from the model itself and hold still, where there are no retain documents; what the "
        "model says rarely is not among them and may drift",
    )


class Unlearn(Section):
    """Settings of unlearning."""

    objective: str | dict[str, float] = Field(
        "default",
        description="default, ascent, grad_diff, npo, npo_token, simnpo, simnpo_token, wga, satimp, undial, dpo, "
        "dpo_token, idk, substitute, rmu, hinge, distill, match, consensus, lens (the middle layers, too); several "
        "with weights: match=1,consensus=0.5 (which is the default)",
    )
    keep_judges: bool = Field(
        True,
        description="keep half of each document's references, where there are four or more (8 cross-fitted ones), out "
        "of unlearning, so that the report is judged by models it was not trained against; false: all of them teach",
    )
    scope: Scope = Field(
        "token",
        description="token: forget the audit's selected tokens; sequence: whole documents that hold any (the baseline)",
    )
    weighting: Literal["hard", "probability", "entropy"] = Field(
        "hard",
        description="weight of a token to forget: 1, its calibrated probability of memorization, or its entropy under "
        "the references",
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="npo, simnpo, dpo and their token forms: inverse temperature; wga, satimp: power of p; "
        "undial: strength; default: as published",
    )
    beta_2: float = Field(1.0, ge=0, description="satimp: power of 1 - p")
    delta: float = Field(0.0, ge=0, description="simnpo: margin, in nats times beta")
    steering: float = Field(2.0, gt=0, description="rmu: length of the false hidden state, in lengths of the true one")
    layer: int | None = Field(
        None,
        ge=0,
        description="layer whose output rmu and hidden anchors act on; default: a third of the way up, or the lowest "
        "one that is trained",
    )
    rounds: int = Field(
        3,
        ge=1,
        description="at most so many times: after each the whole text is looked at again, and what is left of it is "
        "unlearned too (adapters that stop at the control, scope token; else once)",
    )
    margin: float | None = Field(
        None,
        description="nats above the OUT level at which a token has arrived and gets no more gradient; default: the "
        "control level",
    )
    stop_at_control: bool = Field(
        True, description="tokens that have arrived rest, and training stops when the spans are at the control level"
    )
    retain: Retain = Field(default_factory=Retain, description="what holds the rest still")
    method: Literal["lora", "dora", "full", "last_layers"] = Field(
        "lora",
        description="what is trained: a LoRA or DoRA adapter, all weights, or the last layers; the latter two give a "
        "plain model",
    )
    lora: Lora = Field(default_factory=Lora, description="shape of the adapter")
    layers: int = Field(2, ge=1, description="last_layers: how many")
    give: Literal["replace", "difference"] = Field(
        "replace",
        description="where the target is itself an adapter: replace: one adapter to load in its place (both added, at "
        "the sum of their ranks); difference: the new one alone, which only mitigate loads over the target's",
    )
    merge: bool = Field(False, description="also write the model with the adapter merged in, to OUT/merged")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, about a third slower")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="peak of a linear warm-up and cosine decay to a tenth; less near the control, or by retain.trust",
    )
    max_steps: int = Field(400, ge=1, description="at most this many steps; the control usually stops earlier")
    batch_size: int = Field(
        8, ge=1, description="documents, or windows of long ones, with selected tokens in a step of all processes"
    )
    retain_batch_size: int = Field(
        16, ge=0, description="retain documents, or windows of long ones, in a step of all processes"
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="padded tokens in one forward, gradients accumulate; default: as detect.batch_tokens",
    )
    kept_entries: int = Field(
        256, ge=8, description="entries of p_0 and of the references' distributions that are kept for each token"
    )
    check_every: int = Field(20, ge=1, description="steps between two looks at the selected spans")
    checkpoint_every: int = Field(100, ge=1, description="steps between two checkpoints")
    max_gradient_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")

    @model_validator(mode="after")
    def _only_an_adapter_is_merged(self) -> Unlearn:
        if self.merge and self.method not in ("lora", "dora"):
            raise ValueError(f"merge: method {self.method} writes a plain model already; there is no adapter to merge")
        if self.give == "difference" and self.method not in ("lora", "dora"):
            raise ValueError(f"give: method {self.method} writes a plain model; there is no adapter to give alone")
        return self
