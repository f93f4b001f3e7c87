"""A model under attack: loaded as it is served or as bare weights, and what was read from it already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from mitigate.errors import MitigateError
from mitigate.models.directory import model_fingerprint
from mitigate.models.mixture import Mixture
from mitigate.models.model import Model
from mitigate.models.store import ModelStore

Role = Literal["mitigated", "control"]


class NotPossibleError(MitigateError):
    """An attack that cannot be made on these models or documents; the message says why."""


class NotApplicableError(NotPossibleError):
    """An attack for which these documents hold nothing, so that its lack says nothing against the model."""


@dataclass(frozen=True)
class Texts:
    """Texts of one side, with what an attack made of each.

    Attributes:
        scores: (n,) of an AUC the score, NaN where there is none; of extraction 1 or 0; of a continued document how
            much came back; of a value that may be drawn log q, nats.
        groups: (n,) of the documents that they stand in.
        kinds: (n,) what each is: the label of a known span, the kind of a value; empty of a document.
        items: (n,) numbers of the texts, the same for every model.
    """

    scores: np.ndarray
    groups: Sequence[str]
    kinds: Sequence[str]
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def scored(self, scores: np.ndarray) -> Texts:
        """The texts that have a score, by which they are compared."""
        return replace(self, scores=scores).where(~np.isnan(scores))

    def where(self, there: np.ndarray) -> Texts:
        """Some of them."""
        groups, kinds = ([one for one, kept in zip(of, there, strict=True) if kept] for of in (self.groups, self.kinds))
        return Texts(self.scores[there], groups, kinds, self.items[there])


@dataclass
class Reading:
    """What a model said of some documents, which several attacks ask for.

    Attributes:
        columns: name -> (N,) values, NaN outside of these documents.
        numbers: of the documents.
    """

    columns: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def add(self, columns: Mapping[str, np.ndarray], numbers: Sequence[int]) -> None:
        """Values of further documents, NaN elsewhere."""
        for name, column in columns.items():
            old = self.columns.get(name)
            self.columns[name] = column if old is None else np.where(np.isnan(column), old, column)
        self.numbers.update(numbers)


@dataclass(frozen=True)
class Subject:
    """A model under attack.

    Attributes:
        role: what it is here.
        source: where it is.
        store: settles device and number format.
        seen: (N,) bool, tokens of documents that it was trained on, of which it is no control.
        said: what was read from it already, by the name of a reading; see `Reading`.
    """

    role: Role
    source: str
    store: ModelStore
    seen: np.ndarray
    said: dict[str, Reading] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Of its weights."""
        return model_fingerprint(self.source, base=self.store.base)

    def load(self) -> Model:
        """The model as it is served."""
        return self.store.load(self.source)

    def plain(self, *, rounded: bool = True) -> Model:
        """Its weights with the adapters merged, in memory of their own; to be changed as one likes.

        Args:
            rounded (`bool`, *optional*, defaults to `True`): to the base's number format; else merged in float32.

        Raises:
            NotPossibleError: it has no weights that can be merged.
        """
        return plain_model(self.source, self.store, rounded=rounded)


def plain_model(source: str, store: ModelStore, *, rounded: bool = True) -> Model:
    """A model's weights with its adapters merged, in memory of their own, `rounded` as `SharedBase.merge` says.

    Raises:
        NotPossibleError: it has no weights that can be merged.
    """
    model = store.fresh(quantized=False).load(source)
    if isinstance(model.base.model, Mixture):
        raise NotPossibleError(f"{source}: a mixture of shards, whose weights are no one model's")
    if model.adapters:
        try:
            model.base.merge(model.adapters, instead="verify a merged model", rounded=rounded)
        except MitigateError as error:
            raise NotPossibleError(str(error)) from None
    return replace(model, adapters=())
