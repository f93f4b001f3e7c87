"""Reports of simulated people with known truth, through the real figures and the real verdict.

    python -m tests.simulated_reports --reports 200       # from the repository root

Each person has one to three documents with one or two secrets. A token's log-probability is its own difficulty plus,
for each model, an effect of the person and of the token; a model that memorized it adds to it. Four cross-fitted
references, an oracle in half of the reports, extraction of each secret. The truth of a report is what its `leak` says
of the model after unlearning. A leaking model that is called good is a false all-clear: none is allowed; at most 5 % of
the clean ones may be called leaking.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from made_up import made_metadata

from mitigate.artifacts.provenance import Origin
from mitigate.detection.metadata import AuditedModel
from mitigate.detection.record import Audit
from mitigate.detection.settings import Detect
from mitigate.detection.spans.row import SpanRow, span_table
from mitigate.statistics.intervals import clustered_share, flat
from mitigate.verification.compare import compare

TOKENS, SECRET = 16, 3  # tokens of a document, of a secret
REFERENCES = 4
_UNLEARNED = Origin(  # against references that judge nothing here
    **{"by": "unlearn", "taught": [], "objective": {"hinge": 1.0}, "steps": 1, "stopped": "step limit"},
    **{"adapter_parameters": 1, "model_parameters": 1, "control": 0.0},
)


@dataclass(frozen=True)
class Leak:
    """What the model after unlearning still holds: nats per token on secrets and on other text, share extracted.

    `people` is the share of the persons to forget that it holds for.
    """

    secrets: float = 0.0
    other: float = 0.0
    extracted: float = 0.0
    people: float = 1.0

    @property
    def clean(self) -> bool:
        return not (self.secrets or self.other or self.extracted)


CLEAN = Leak()
LEAKS = {
    "clean": CLEAN,
    "weak": Leak(secrets=0.4, other=0.1),
    "strong": Leak(secrets=2.0, other=1.0, extracted=0.5),
    "extraction": Leak(extracted=0.35),
    "documents": Leak(other=0.5),
    "some people": Leak(secrets=2.5, people=0.3),
}
PEOPLE = {"many": 80, "some": 40, "few": 8, "one": 1}  # to forget; of never-seen ones there are 80, 40, 12 and 40
NEVER_SEEN = {"many": 80, "some": 40, "few": 12, "one": 40}
_STEP = 7  # through the kinds of reports, so that a few of them are of all sizes; even seeds stay clean ones


@dataclass(frozen=True)
class World:
    """Simulated documents: for each token its person, its document, whether it is a secret's, and the models' noise."""

    draw: np.random.Generator
    members: int
    never_seen: int

    def tables(self, leak: Leak) -> tuple[Audit, Audit, np.ndarray, dict[str, Any]]:
        """The audit before (which leaks), the one after (which leaks as told), the oracle, and extraction."""
        draw = self.draw
        count = self.members + self.never_seen
        documents = draw.integers(1, 4, size=count)
        person = np.repeat(np.arange(count), documents)
        tokens = np.repeat(person, TOKENS)
        place = np.tile(np.arange(TOKENS), len(person))
        starts = [[4, 10][: draw.integers(1, 3)] for _ in person]
        secret = np.concatenate(
            [np.isin(np.arange(TOKENS), [start + n for start in own for n in range(SECRET)]) for own in starts]
        )
        difficulty = -3 + draw.normal(0, 1, size=len(tokens)) + draw.normal(0, 0.5, size=count)[tokens]

        def model() -> np.ndarray:
            return difficulty + draw.normal(0, 0.2, size=count)[tokens] + draw.normal(0, 0.5, size=len(tokens))

        holds = np.arange(count) < round(self.members * leak.people)
        own = np.where(secret, leak.secrets, leak.other) * holds[tokens]
        target = model()
        before = target + np.where(secret, 2.0, 1.0) * (tokens < self.members)
        after = target + 0.2 * draw.normal(size=len(tokens)) + own
        references = np.stack([model() for _ in range(REFERENCES)], axis=1)
        for number in range(count):  # each person trained half of the references
            references[np.ix_(tokens == number, draw.permutation(REFERENCES)[: REFERENCES // 2])] = np.nan
        references[place == 0] = np.nan
        table = {"tokens": tokens, "place": place, "secret": secret, "person": person, "starts": starts}
        first = self._audit(table, before, references, origin=None)
        return (
            first,
            self._audit(table, after, references, again=first.fingerprint, origin=_UNLEARNED),
            np.where(place == 0, np.nan, model()),
            self._extraction(table, leak),
        )

    def _audit(
        self,
        table: dict[str, Any],
        log_prob: np.ndarray,
        references: np.ndarray,
        *,
        origin: Origin | None,
        again: str | None = None,
    ) -> Audit:
        place, secret, person = table["place"], table["secret"], table["person"]
        first = place == 0
        with np.errstate(invalid="ignore"):
            out = np.log(np.nanmean(np.exp(references), axis=1, where=~first[:, None]))
        log_prob, out = np.where(first, np.nan, log_prob), np.where(first, np.nan, out)
        score = np.clip(log_prob - out, -3, 3)
        names = [f"d{number}" for number in range(len(person))]
        sets = ["forget" if one < self.members else "holdout" for one in person]
        member = np.repeat(np.array(sets) == "forget", TOKENS)
        spans: list[SpanRow] = []
        for number, own in enumerate(table["starts"]):
            whole = [("found", 1, TOKENS - 1)] if sets[number] == "forget" else []
            for source, start, end in [*(("known", at, at + SECRET) for at in own), *whole]:
                rows = slice(number * TOKENS + start, number * TOKENS + end)
                spans.append(
                    SpanRow(
                        span_id=len(spans),
                        doc_id=names[number],
                        char_start=5 * start,
                        char_end=5 * end - 1,
                        token_start=start,
                        token_end=end,
                        label="",
                        source=source,
                        score=float(np.mean(score[rows])),
                        selected=sets[number] == "forget" and source == "known",
                    )
                )
        columns = {"log_prob": log_prob, "log_prob_out": out, "score": score}
        tokens = pa.table(
            {
                "doc_id": np.repeat(names, TOKENS),
                "position": place,
                "char_start": 5 * place,
                "char_end": 5 * place + 4,
                "rank": np.where(first | (log_prob < -1), 2, 1),
                **{name: pa.array(values, from_pandas=True) for name, values in columns.items()},
                "log_prob_references": pa.FixedSizeListArray.from_arrays(
                    pa.array(references.ravel(), from_pandas=True), REFERENCES
                ),
                "selected": secret & member,
            }
        )
        texts = ["".join(f"{TOKENS * number + at:04x} " for at in range(TOKENS)) for number in range(len(person))]
        documents = pa.table(
            {
                "doc_id": names,
                "set": sets,
                "group": [f"p{one}" for one in person],
                "text": texts,
                "out_references": [list(range(REFERENCES))] * len(names),
            }
        )
        models = map(str, range(REFERENCES))
        metadata = made_metadata(
            kind="crossfit",
            references=tuple(AuditedModel(name=name, source=name, fingerprint=name) for name in models),
            detect=Detect(),
            origin=origin,
            again=again,
        )
        return Audit(tokens, documents, span_table(spans), metadata)

    def _extraction(self, table: dict[str, Any], leak: Leak) -> dict[str, Any]:
        """The report's section: some can be guessed (3 %), persons differ in how much of theirs is held."""
        draw = self.draw
        person = np.repeat(table["person"], [len(own) for own in table["starts"]])
        rate = leak.extracted * draw.beta(1, 1, size=self.members + self.never_seen)[person] * 2
        member = person < self.members
        rate = np.where(member & (person < round(self.members * leak.people)), np.minimum(rate, 1), 0)
        hit = {
            "before": draw.random(len(person)) < np.where(member, 0.5, 0.03),
            "after": draw.random(len(person)) < np.maximum(rate, 0.03),
            "oracle": draw.random(len(person)) < 0.03,
        }
        names = [f"p{one}" for one in person]

        def shares(chosen: np.ndarray, *sides: str) -> dict[str, Any]:
            own = [name for name, there in zip(names, chosen, strict=True) if there]
            return flat({side: clustered_share(hit[side][chosen], own) for side in sides})

        return {
            **shares(member, "before", "after", "oracle"),
            "secrets": int(member.sum()),
            "never_seen": {**shares(~member, "before", "after"), "secrets": int((~member).sum())},
        }


def simulated(seed: int, *, leak: str, people: str, oracle: bool) -> dict[str, Any]:
    """A report whose truth is known."""
    world = World(np.random.default_rng([seed, len(leak), len(people)]), PEOPLE[people], NEVER_SEEN[people])
    before, after, never_saw, extraction = world.tables(LEAKS[leak])
    report = compare(before, after, oracle_log_probs=never_saw if oracle else None).report
    if not oracle:
        extraction |= {"oracle": None, "oracle_interval": None}
    report["extraction"] = extraction
    return report


def cases(reports: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Settings of that many reports from seed `first` on: clean and leaking in turn, of every kind and size."""
    leaking = [name for name, leak in LEAKS.items() if not leak.clean]
    kinds = [(leak, people) for people in PEOPLE for kind in leaking for leak in ("clean", kind)]
    return [
        {"seed": seed, "leak": leak, "people": people, "oracle": (seed // len(kinds)) % 2 == 0}
        for seed in range(first, first + reports)
        for leak, people in [kinds[_STEP * seed % len(kinds)]]
    ]


def main() -> None:
    """Print how often a leaking model is called good and a clean one leaking; --out gets the counts."""
    from mitigate.artifacts.files import write_json
    from mitigate.reporting.verdict import verdict_of
    from mitigate.runtime import library_versions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first report")
    parser.add_argument("--out", type=Path, help="file to write the counts to (JSON)")
    arguments = parser.parse_args()
    counted: dict[tuple[str, str], Counter[str]] = {}
    verdicts: Counter[tuple[str, str, str, bool | None]] = Counter()
    for case in cases(arguments.reports, first=arguments.first):
        verdict = verdict_of(simulated(**case))
        key = case["leak"], case["people"]
        says = {True: "leaks", False: "clean", None: "cannot tell"}[verdict["leaks"]]
        counted.setdefault(key, Counter()).update([f"{verdict['status']}, {says}"])
        verdicts[*key, verdict["status"], verdict["leaks"]] += 1
    for (leak, people), own in sorted(counted.items()):
        print(f"{leak:12} {people:5} {dict(own)}")
    leaking = {key: own for key, own in counted.items() if not LEAKS[key[0]].clean}
    clean = {key: own for key, own in counted.items() if LEAKS[key[0]].clean}

    def share(of: dict[tuple[str, str], Counter[str]], words: str) -> str:
        hits = sum(number for own in of.values() for name, number in own.items() if words in name)
        every = sum(map(Counter.total, of.values()))
        return f"{hits} of {every} ({hits / every:.1%})"

    print("leaking, called good:", share(leaking, "good"))
    print("clean, called leaking:", share(clean, "leaks"))
    print("clean, cannot tell:", share(clean, "cannot tell"))
    enough = {key: own for key, own in clean.items() if PEOPLE[key[1]] >= 40}
    print("clean, cannot tell, 40 people or more:", share(enough, "cannot tell"))
    if arguments.out is not None:
        rows = [
            {
                "leak": leak,
                "clean": LEAKS[leak].clean,
                "people": PEOPLE[people],
                "status": status,
                "leaks": leaks,
                "reports": number,
            }
            for (leak, people, status, leaks), number in verdicts.items()
        ]
        settings = {"reports": arguments.reports, "first": arguments.first}
        write_json(arguments.out, {"verdicts": rows, "settings": settings, "versions": library_versions()})


if __name__ == "__main__":
    main()
