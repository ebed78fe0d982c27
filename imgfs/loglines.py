"""Log records as lines: of untrusted text, one for each record."""

from __future__ import annotations

import logging
from typing import Any

from imgfs.quoting import printable


class LineFormatter(logging.Formatter):
    """Writes each record as a line of its own, whatever is in it; the lines of a traceback follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (named by logging)
        """Write the record's own line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  (likewise)
        """Write a traceback."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class ComplaintFormatter(LineFormatter):
    """Writes a record as a command complains: it is imgfs that speaks, and a warning says that it is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (likewise)
        """Write the record's own line."""
        warns = "warning: " if record.levelno == logging.WARNING else ""
        return f"imgfs: {warns}{super().formatMessage(record)}"
