"""Log lines, for people or for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from services.common.calls import request_id

__all__ = ["JsonFormatter", "configure_logging"]

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Keys: time (UTC, ISO 8601), level, logger, message; request_id while a request is served; exception with its
    traceback. A line of the access log has the fields of the call too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) != "-":
            line["request_id"] = current
        line |= getattr(record, "call", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, format: str) -> None:
    """Send this process's log lines to its standard error.

    Args:
        level: Least level that is logged.
        format: "text" or "json".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # it reports every thread pool
