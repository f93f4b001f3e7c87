"""The text of a row, by the source's keys or the format that it is recognised as, and which characters are audited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mitigate.documents.chat.rendering import SPOKEN, check_arguments, check_messages, check_tools, render_chat
from mitigate.documents.chat.turns import UNTOUCHED
from mitigate.documents.rows.bodies import Body, Chat, Pair, Text, Tokens, Values
from mitigate.documents.rows.fields import field_of, fill
from mitigate.documents.rows.formats import Format, recognise
from mitigate.documents.rows.messages import as_messages
from mitigate.documents.rows.token_ids import text_of
from mitigate.documents.sources import DocumentSource
from mitigate.errors import MitigateError
from mitigate.text.patterns import substitute

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ranges = tuple[tuple[int, int], ...]
Tokenizer = Callable[[], "PreTrainedTokenizerBase | None"]  # loaded when a row needs it


class RowText(NamedTuple):
    """A row's text.

    Attributes:
        text: as the model saw it.
        audited: half-open character ranges; none: the whole text.
        special_tokens: whether the tokenizer's own are still to be added.
        rendered: the text is none that the row holds, so offsets that it gives do not fit.
    """

    text: str
    audited: Ranges
    special_tokens: bool
    rendered: bool


def body_of(source: DocumentSource, values: Values) -> tuple[Body, tuple[Format, tuple[str, ...]] | None]:
    """What the row's text is made of, by the source's keys or, without any, by the format that it is recognised as.

    Returns:
        and the format, with the names of others that the row has besides.

    Raises:
        MitigateError: a field that is missing or no text, or a row of no known format.
    """
    if source.text is not None:
        return Text(fill(source.text, values)), None
    if source.prompt is not None and source.completion is not None:
        return Pair(fill(source.prompt, values), fill(source.completion, values)), None
    if source.messages is not None:
        return Chat(field_of(values, source.messages)), None
    form, body, besides = recognise(values)
    return body, (form, besides)


def row_text(source: DocumentSource, body: Body, values: Values, tokenizer: Tokenizer) -> RowText:
    """The text that a body makes, and which characters of it are audited.

    Args:
        source: its `audit`, `replace`, `per` and `template` are used.
        body: as `body_of` gives it.
        values: of the row; a chat may bring tools and arguments for its template.
        tokenizer: renders chats and decodes token ids.

    Raises:
        MitigateError: what cannot be made a text, or keys of the source that do not go with it.
    """
    audit = source.audit
    match body:
        case Text():
            if audit not in (None, "all"):
                raise MitigateError(f"audit: {audit}, but a text has neither turns nor a completion; set it to all")
            return RowText(_rewrite(source, body.text), (), special_tokens=True, rendered=False)
        case Pair():
            before, after = _rewrite(source, body.prompt), _rewrite(source, body.completion)
            if not after.strip():
                raise MitigateError("the completion is empty")
            if isinstance(audit, list):
                raise MitigateError("audit: roles are those of chat messages; of a completion, give all or completion")
            whole = body.whole if audit is None else audit == "all"
            audited = ((0 if whole else len(before), len(before) + len(after)),)
            return RowText(before + after, audited, special_tokens=True, rendered=body.rendered)
        case Chat():
            return RowText(*_chat(source, body, values, tokenizer()), special_tokens=False, rendered=True)
        case Tokens():
            if source.replace:
                raise MitigateError("replace cannot rewrite token ids (input_ids); leave it out, or give the text")
            if audit is not None:
                raise MitigateError("audit: of token ids (input_ids) the labels say what was trained on; leave it out")
            if source.per != "file":
                raise MitigateError(f"per: {source.per} cannot cut up token ids (input_ids); leave it out")
            return RowText(*text_of(body.values, tokenizer()), rendered=True)


def _chat(
    source: DocumentSource, body: Chat, values: Values, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[str, Ranges]:
    """A conversation's text and audited ranges."""
    if tokenizer is None:
        raise MitigateError("chat messages need a tokenizer with a chat template; pass the target's")
    if source.per != "file":
        raise MitigateError(f"per: {source.per} cannot cut up chat messages; leave it out")
    messages = [
        {key: _rewritten(source, item) if key in SPOKEN else item for key, item in message.items()}
        for message in check_messages(as_messages(body.messages))
    ]
    return render_chat(
        messages,
        tokenizer,
        audit=source.audit,
        completion=body.completion,
        tools=check_tools(values.get("tools")),
        arguments={**source.template, **check_arguments(values.get("chat_template_kwargs"))},
    )


def _rewritten(source: DocumentSource, value: Any) -> Any:
    """The value with every text in it rewritten."""
    if isinstance(value, str):
        return _rewrite(source, value)
    if isinstance(value, list):
        return [_rewritten(source, item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in UNTOUCHED else _rewritten(source, item) for key, item in value.items()}
    return value


def _rewrite(source: DocumentSource, text: str) -> str:
    for number, rule in enumerate(source.replace, start=1):
        text = substitute(rule.pattern, rule.replacement, text, name=f"replace, rule {number}")
    return text
