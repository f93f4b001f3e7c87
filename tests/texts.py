"""Texts that Hypothesis makes, for the tests of what holds of every text.

Beside ordinary characters come those that have caused trouble somewhere: letters that fold to several, accents that
stand alone, joined emoji, scripts without spaces, full-width and other digits, what nobody sees, every kind of space.
"""

from __future__ import annotations

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_ASCII = st.characters(max_codepoint=127)
_ANY = st.characters(exclude_categories=["Cs"])  # half of a surrogate pair is no text; reading refuses it
_TROUBLE = st.sampled_from(
    [
        *"ßŉİıſﬁǅΣςøÆéÅñ",
        *"\u0301\u0327\u0345\u093f\u0903\u0e33",
        *"👩👧🎉🏽🇨🇭",
        *"กขမខ日本가각한ｶﾞ",
        *"５٣৪²①½",
        *"\u200b\u200d\u00ad\u2060\ufeff\ufe0f\u202e\u034f\u3164\U000e0041",
        *" \t\n\r\x0b\x1c\x85\u00a0\u2028\u3000",
        *"+-.,()/@#'’–\"<>&{}[]\\",
        *"0123456789",
        *"AaBbZz",
    ]
)


def texts(*, ascii_only: bool = False, least: int = 0, most: int = 30) -> st.SearchStrategy[str]:
    """Texts of `least` to `most` characters, white space and nothing at all among them."""
    return st.text(_ASCII if ascii_only else st.one_of(_TROUBLE, _ANY, _ASCII), min_size=least, max_size=most)


def written_texts(*, most: int = 30) -> st.SearchStrategy[str]:
    """Texts that a document may have: something in them is not white space."""
    return texts(least=1, most=most).filter(str.strip)


def ranges_of(text: str, *, least: int = 0, most: int = 4) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Ranges [start, end) of characters of a text that is not empty; they may overlap."""
    edges = st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text)))
    return st.lists(edges.map(lambda pair: (min(pair), max(pair[1], pair[0] + 1))), min_size=least, max_size=most)


def byte_tokenizer(*, bos: bool = True, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|turn|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["call me at home", "hello there my friend"] * 20, trainer)
    steps: list = [processors.ByteLevel(trim_offsets=trim_offsets)]
    steps += [processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])] if bos else []
    backend.post_processor = processors.Sequence(steps)
    backend.enable_truncation(4)  # saved by many a tokenizer.json; must not cut what is audited
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|turn|>"],
        model_max_length=8,
    )
