"""Stores that fail in their own ways."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from services.common.store.folder import FolderStore
from vlmir.errors import UnavailableError


class Hanging(FolderStore):
    """Answers nothing until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "vlmir", [], {})
        self.gate = threading.Event()
        self.asked = 0

    def _write(self, *arguments: Any) -> None:
        self._hang()
        super()._write(*arguments)

    def _open(self, location: Any) -> Any:
        self._hang()
        return super()._open(location)

    def _hang(self) -> None:
        self.asked += 1
        assert self.gate.wait(20)


class Broken(FolderStore):
    """Has a bug that shows when something is stored."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "vlmir", [], {})

    def _write(self, *arguments: Any) -> None:
        raise ValueError("a bug")


class Late(FolderStore):
    """Cannot be prepared until it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "vlmir", [], {})
        self.let = False
        self.prepared = 0

    def prepare(self) -> None:
        if not self.let:
            raise UnavailableError("The store does not answer; start it.")
        self.prepared += 1
        super().prepare()
