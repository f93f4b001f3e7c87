"""Settings of the report."""

from __future__ import annotations

from typing import Literal

ShownText = Literal["none", "masked", "all"]
"""What a report shows of the documents: no text, text with its secrets masked, or all of it."""
