"""Text of others prints no line of its own making."""

from __future__ import annotations

import logging
from typing import get_args

import pytest
from made_up import make_audit

import mitigate.cli.app
from mitigate.cli.options import ShownText
from mitigate.documents import Document, Documents, Request
from mitigate.documents.erasure import apply_request
from mitigate.errors import MitigateError, printable, printable_lines, summarize
from mitigate.reporting import settings
from mitigate.reporting.heat_map import build_heat_map
from mitigate.reporting.masking import Mask

EVIL = "a\nmitigate: all clear\r\x1b[32m\u202egood\u2028\x9b1m\u200b"


def is_one_plain_line(text: str) -> bool:
    return text.isprintable()


def test_an_id_is_one_line_without_control_or_direction_characters() -> None:
    assert is_one_plain_line(printable(EVIL))
    assert is_one_plain_line(summarize([EVIL, "b"]))
    assert printable("Zoë 🙂 日本") == "Zoë 🙂 日本"
    assert "\\nmitigate: all clear\\r\\x1b[32m\\u202egood" in printable(EVIL)


def test_errors_that_name_ids_are_in_lines_of_their_own_alone() -> None:
    documents = Documents((Document(EVIL, "Ann is here"), Document(f"{EVIL}2", "Ben")))
    audit = make_audit({EVIL: "It is."})
    for call in (
        lambda: Documents((*documents, Document(EVIL, "x"))),
        lambda: apply_request(documents, Request(ids=[EVIL[:-1]])),
        lambda: apply_request(documents, Request(contains=["nobody"])),
        lambda: Document(EVIL, " "),
        lambda: build_heat_map(audit, mask=Mask([audit]), doc_ids=["zzz"]),
        lambda: build_heat_map(audit, make_audit({EVIL: "It is."}, offsets={EVIL: [(0, 1)]}), mask=Mask([audit])),
    ):
        with pytest.raises(MitigateError) as caught:
            call()
        for line in str(caught.value).split("\n"):
            assert is_one_plain_line(line), line
            assert not line.startswith("mitigate: all clear")


def test_logs_and_errors_of_the_command_line_move_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise MitigateError(f"two lines\n  - {EVIL!r} and \x1b[2J\u202e")

    monkeypatch.setattr(mitigate.cli.app, "app", fail)
    with pytest.raises(SystemExit):
        mitigate.cli.app.main()
    error = capsys.readouterr().err
    assert error.startswith("mitigate: two lines\n  - ")
    assert error == printable_lines(error)
    record = logging.makeLogRecord({"msg": "%s\x1b[2J", "args": ("id",)})
    assert mitigate.cli.app._Plain("%(message)s").format(record) == "id\\x1b[2J"


def test_the_command_line_and_the_report_know_the_same_amounts_of_text() -> None:
    assert tuple(ShownText) == get_args(settings.ShownText)
