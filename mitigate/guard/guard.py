"""The guard: a store of secrets, as hashes, that stops a model from completing one of them while it writes.

    guard = Guard.make(secrets_in_audit(Audit.load("audit")))                             # of guard.sources
    guard.save("guard.json")
    model.generate(**inputs, logits_processor=[GuardLogitsProcessor(guard, tokenizer)])   # of guard.decoding

A stop-gap until the model is unlearned, never unlearning: the weights still hold the secret, whoever has them leaves
the guard out, and the token that is blocked tells what it hides. Audits, re-audits and reports are made without it.

What is blocked. Text counts by its letters and digits alone (`secrets.same`), so '555-123 4567' and '(555) 1234567' are
one secret. Of a secret of L of these characters no run of n is completed, wherever in the secret it begins:

    n = min(longest, max(shortest, ceil(share * L)))                        by default share 2/3, shortest 4, longest 32

Up to n - 1 may come out, since a secret begins as other text does (an area code, a first name): 6 of the 10 digits of
a phone number, 3 of the 6 of a door code. Runs from the middle are blocked too: a secret without its country code, or
after a beginning that the user typed, is still the secret. Not blocked: a secret spelled out ('five five five'), put
into another alphabet or code, or with other letters and digits in between, such as the names of roles in a chat where
the user wrote one part and the model only the rest.

What the file tells. It holds keyed BLAKE2b hashes of the runs and of their halves (by which the processor knows when
to look closer). Hashes keep a secret from being read, not from being guessed: whoever has the file can try all phone
numbers in seconds, names and addresses from lists, and half a run after another any random string shorter than about
30 characters (45 of hexadecimal). With a key (`new_key`), kept apart from the file, the file alone tells nothing but
how many secrets and runs of which lengths there are. Without one, keep the file as you keep the model, which holds the
same secrets.
"""

from __future__ import annotations

import hashlib
import math
import secrets as randomness
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mitigate.artifacts.files import read_json, read_record, write_record
from mitigate.errors import MitigateError, summarize
from mitigate.secrets.same import comparable, core

NOTICE = "a guard is a stop-gap: the model still holds the secrets; unlearn them, and audit with the guard off"
SHARE, SHORTEST, LONGEST = 2 / 3, 4, 32
_HASH_BYTES = 16
_KINDS = ("runs", "heads", "tails")
_VERSION = 2  # another one compared other letters, so its hashes would let secrets pass


def run_length(length: int, *, share: float, shortest: int, longest: int) -> int:
    """How many characters in a row of a secret of so many must not come out; see the top of this file."""
    return min(longest, max(shortest, math.ceil(share * length - 1e-9)))


def windows(text: str, length: int) -> list[str]:
    """All runs of so many characters, in order."""
    return [text[start : start + length] for start in range(len(text) - length + 1)]


def head_length(length: int) -> int:
    """How many characters at its beginning tell that a run of this length may have begun."""
    return (length + 1) // 2


def tail_length(length: int) -> int:
    """How many characters at its end tell that a token may end a run; with the head, one more than the run."""
    return length + 1 - head_length(length)


@dataclass(frozen=True)
class Guard:
    """Hashes of what must not be completed.

    Attributes:
        salt: 16 random bytes, so that equal secrets give other hashes in every guard.
        hashes: kind -> length n -> hashes; of the kind `runs`, those of the forbidden runs of n normalised characters,
            of `heads` and `tails`, those of the first and last halves of these runs.
        secrets: how many distinct secrets there are.
        key: kept out of the file; empty where the guard has none.
    """

    salt: bytes
    hashes: Mapping[str, Mapping[int, frozenset[bytes]]]
    secrets: int
    key: bytes = field(default=b"", repr=False)

    @classmethod
    def make(
        cls,
        secrets: Iterable[str],
        *,
        share: float = SHARE,
        shortest: int = SHORTEST,
        longest: int = LONGEST,
        ordinary: Iterable[str] = (),
        key: bytes = b"",
    ) -> Guard:
        """A guard of these strings.

        Args:
            secrets: in any format; equal ones count once.
            share (`float`, *optional*, defaults to 2/3): of a secret's letters and digits, what must not come out.
            shortest (`int`, *optional*, defaults to 4): no run of fewer characters is blocked.
            longest (`int`, *optional*, defaults to 32): a run of so many characters is blocked however long the secret.
            ordinary (*optional*): text that everyone may write, such as a company's domain or address; runs that occur
                in it are not blocked. A secret keeps one run at least, so the whole of it is never completed.
            key (*optional*): of `new_key`; without it the guard cannot be used, nor guessed at.

        Raises:
            MitigateError: no secret; secrets that are too short, or wholly in the ordinary text (all named by number);
                numbers that make no sense.
        """
        if not (0 < share <= 1 and 2 <= shortest <= longest):
            raise MitigateError(
                f"guard: share {share:g}, shortest {shortest}, longest {longest}; "
                "share lies between 0 and 1, shortest is 2 or more and at most longest"
            )
        secrets = list(secrets)
        texts = [comparable(secret) for secret in secrets]
        if not texts:
            raise MitigateError("guard: no secret given; an audit with selected spans has some, or give a file of them")
        if short := [number for number, text in enumerate(texts, start=1) if len(text) < shortest]:
            raise MitigateError(
                f"guard: secrets with fewer than {shortest} letters and digits: number {summarize(short)}; to block so "
                "short a text would block everyday text: leave them out, or lower shortest"
            )
        pieces = {text: _pieces(secret, share, shortest, longest) for text, secret in zip(texts, secrets, strict=True)}
        runs = set().union(*pieces.values())
        allowed = _held(runs, ordinary)
        if open_ := [number for number, text in enumerate(texts, start=1) if pieces[text] <= allowed]:
            raise MitigateError(
                f"guard: secrets that the ordinary text holds: number {summarize(open_)}; "
                "take them out of the ordinary text, or do not guard them"
            )
        guard = cls(randomness.token_bytes(16), {}, len(pieces), key)
        return replace(guard, hashes=guard._tables(runs - allowed))

    @property
    def lengths(self) -> list[int]:
        """The lengths of the runs, shortest first."""
        return sorted(self.hashes["runs"])

    def forbids(self, run: str) -> bool:
        """Whether normalised characters are a forbidden run."""
        return self.holds("runs", len(run), run)

    def holds(self, kind: str, length: int, text: str) -> bool:
        """Whether a run, or a half of one, is among those stored.

        Args:
            kind: `runs`, `heads` or `tails`.
            length: n, of the run.
            text: normalised characters.
        """
        return self._hash(kind, length, text).digest() in self.hashes[kind].get(length, ())

    def completing(self, before: str, ends: Iterable[str], *, length: int) -> list[str]:
        """The ends that make text a forbidden run.

        Args:
            before: normalised characters, the beginning of a run.
            ends: what may follow it, each to a run of this length.
            length: n, one of `lengths`.
        """
        begun, stored, found = self._hash("runs", length, before), self.hashes["runs"][length], []
        for end in ends:
            digest = begun.copy()
            digest.update(end.encode())
            if digest.digest() in stored:
                found.append(end)
        return found

    def save(self, path: str | Path) -> None:
        """Write one JSON file, readable by its owner only: salt and hashes, neither secrets nor key."""
        write_record(
            Path(path),
            {
                "mitigate_guard": _VERSION,
                "notice": NOTICE,
                "secrets": self.secrets,
                "keyed": bool(self.key),
                "salt": self.salt.hex(),
                "check": self._hash("check", 0, "").hexdigest(),
                "hashes": {
                    kind: {str(n): sorted(value.hex() for value in values) for n, values in table.items()}
                    for kind, table in self.hashes.items()
                },
            },
        )

    @classmethod
    def load(cls, path: str | Path, *, key: bytes = b"") -> Guard:
        """Read what `save` wrote.

        Raises:
            MitigateError: no guard there, a damaged one, no key for a guard that has one, or a wrong one.
        """
        values = read_json(Path(path))
        if not isinstance(values, dict) or "mitigate_guard" not in values:
            raise MitigateError(f"{path}: holds no guard; make one with `mitigate guard make`")
        if values["mitigate_guard"] != _VERSION:
            raise MitigateError(
                f"{path}: a guard of version {values['mitigate_guard']!r}, which compares letters in another way than "
                f"version {_VERSION} of this code and would let secrets pass; make it anew with `mitigate guard make`"
            )
        values = read_record(Path(path), remedy="make it anew with `mitigate guard make`")
        try:
            hashes = {
                kind: {int(n): frozenset(map(bytes.fromhex, listed)) for n, listed in values["hashes"][kind].items()}
                for kind in _KINDS
            }
            guard = cls(bytes.fromhex(values["salt"]), hashes, values["secrets"], key)
            keyed, check = values["keyed"], bytes.fromhex(values["check"])
            if not guard.lengths or {*hashes["heads"], *hashes["tails"]} - {*guard.lengths}:
                raise ValueError("hashes are missing")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MitigateError(
                f"{path}: a damaged guard ({error!r}); make it anew with `mitigate guard make`"
            ) from None
        if keyed != bool(key):
            remedy = "give the key that it was made with (--key FILE)" if keyed else "leave the key out"
            raise MitigateError(f"{path}: made with{'' if keyed else 'out'} a key; {remedy}")
        if guard._hash("check", 0, "").digest() != check:
            raise MitigateError(f"{path}: not made with this key, or damaged; give the key that it was made with")
        return guard

    def _tables(self, runs: Iterable[str]) -> dict[str, dict[int, frozenset[bytes]]]:
        tables: dict[str, dict[int, set[bytes]]] = {kind: {} for kind in _KINDS}
        for run in runs:
            n = len(run)
            parts = {"runs": run, "heads": run[: head_length(n)], "tails": run[-tail_length(n) :]}
            for kind, part in parts.items():
                tables[kind].setdefault(n, set()).add(self._hash(kind, n, part).digest())
        return {kind: {n: frozenset(table[n]) for n in sorted(table)} for kind, table in tables.items()}

    def _hash(self, kind: str, length: int, text: str) -> Any:
        digest = self._blank.copy()
        digest.update(f"{kind}:{length}:{text}".encode())
        return digest

    @cached_property
    def _blank(self) -> Any:
        return hashlib.blake2b(digest_size=_HASH_BYTES, key=self.key, salt=self.salt)


def all_ordinary(
    secrets: Sequence[str],
    ordinary: Iterable[str],
    *,
    share: float,
    shortest: int,
    longest: int,
) -> list[bool]:
    """Of each secret, whether ordinary text holds all its runs, so that `Guard.make` would have none to block."""
    pieces = [_pieces(secret, share, shortest, longest) for secret in secrets]
    allowed = _held(set().union(*pieces), ordinary)
    return [own <= allowed for own in pieces]


def _pieces(secret: str, share: float, shortest: int, longest: int) -> set[str]:
    """The runs of a secret that must not be completed; of a number also those that it has without a country code."""
    texts = {comparable(secret), core(secret) or comparable(secret)}
    return {
        run
        for text in texts
        for run in windows(text, run_length(len(text), share=share, shortest=shortest, longest=longest))
    }


def _held(runs: Set[str], texts: Iterable[str]) -> set[str]:
    """The runs that stand in texts."""
    lengths = {len(run) for run in runs}
    return {run for text in texts for n in lengths for run in {*windows(comparable(text), n)} & runs}
