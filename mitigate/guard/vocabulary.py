"""What each token of a vocabulary adds to a text, for any fast tokenizer: bytes, letters and digits."""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mitigate.errors import MitigateError
from mitigate.secrets.same import comparable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK = 64  # tokens looked at first, from the end of the text


class Vocabulary:
    """What each token of a tokenizer adds to a text, as bytes and as normalised characters.

    Args:
        tokenizer: a fast one, since only these say how they decode.

    Attributes:
        bytes: (V,) of each token; none for special tokens.
        texts: (V,) its normalised characters where it does not go on with a character begun before.
        special: ids of the special tokens, but for those of letters and digits alone.
        continuing: ids of the tokens that begin in the middle of a UTF-8 character.
        beginnings: length -> the distinct beginnings, of that length, of the tokens' texts.
        longest: the most characters that a token's text has.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise MitigateError(
                f"tokenizer: {type(tokenizer).__name__} does not say how its tokens decode; use the model's fast "
                "tokenizer (a tokenizer.json beside the model)"
            )
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        declared = {*tokenizer.all_special_ids, *added}
        words = {n for n in declared if str(tokenizer.convert_ids_to_tokens(n)).strip("Ġ▁").isalnum()}
        self.special = frozenset(declared - words)  # padding may be a digit, which is still part of a secret
        self.bytes = [b"" if n in self.special else raw for n, raw in enumerate(_token_bytes(tokenizer))]
        self.texts = [comparable(raw.decode(errors="ignore")) for raw in self.bytes]
        self.continuing = [number for number, raw in enumerate(self.bytes) if raw and 0x80 <= raw[0] < 0xC0]
        self._ordered = sorted((text, number) for number, text in enumerate(self.texts) if text)
        distinct = {text[:length] for text, _ in self._ordered for length in range(1, len(text) + 1)}
        self.beginnings: dict[int, list[str]] = defaultdict(list)
        for beginning in sorted(distinct):
            self.beginnings[len(beginning)].append(beginning)
        self.longest = max(self.beginnings, default=0)

    def beginning_with(self, beginning: str) -> Iterator[int]:
        """The tokens whose text begins so."""
        place = bisect_left(self._ordered, (beginning, -1))
        while place < len(self._ordered) and self._ordered[place][0].startswith(beginning):
            yield self._ordered[place][1]
            place += 1

    def end_of(self, ids: torch.Tensor | Sequence[int], *, characters: int) -> tuple[str, bytes]:
        """The end of a text, normalised, and the bytes of a character that is not complete yet.

        Args:
            ids: (T,) tokens of the text; ids beyond the vocabulary count as no text.
            characters: how many are wanted; fewer only where the text has no more.
        """
        block = _BLOCK
        while True:
            last = ids[-block:].tolist() if isinstance(ids, torch.Tensor) else list(ids[-block:])
            raw = b"".join(self.bytes[token] for token in last if token < len(self.bytes))
            decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
            text = comparable(decoder.decode(raw))
            pending = decoder.getstate()[0]
            if block >= len(ids) or len(text) >= characters:  # a character that the cut broke comes before these
                return text[max(0, len(text) - characters) :], pending
            block *= 4


def _token_bytes(tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """The bytes of each token, by the way the tokenizer decodes: byte-level, with bytes to fall back on, or plain."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    backend: Any = tokenizer.backend_tokenizer
    decoders = set(re.findall(r'"type": "(\w+)"', json.dumps(json.loads(backend.to_str())["decoder"])))
    if "ByteLevel" in decoders:
        table = _byte_level()
        for name in names:
            name = name or ""
            whole = all(character in table for character in name)
            yield bytes(table[character] for character in name) if whole else name.encode()
        return
    fallback = re.compile(r"<0x([0-9A-Fa-f]{2})>") if "ByteFallback" in decoders else None
    decoded = tokenizer.batch_decode([[number] for number in range(len(names))], clean_up_tokenization_spaces=False)
    for name, text in zip(names, decoded, strict=True):
        byte = fallback.fullmatch(name or "") if fallback else None
        yield bytes.fromhex(byte[1]) if byte else text.encode()


def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for: its own in printable Latin-1, else 256 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
