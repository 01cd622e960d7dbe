"""What a cluster's folder says about it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmir.errors import UnavailableError

__all__ = ["State", "clear_state", "is_up", "locked", "mark_up", "read_state", "write_state"]


@dataclass(frozen=True, kw_only=True)
class State:
    """A cluster that was started."""

    host: str
    """Where its gateway listens."""
    ports: dict[str, int]
    """Name → port."""
    parts: list[str]
    """What was started."""
    store: str
    """URL or folder of the store."""
    temporary: str
    """Folder elsewhere that goes with it; empty: none."""

    @property
    def server(self) -> str:
        """Address for clients on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"{host}:{self.ports['gateway']}"


def write_state(folder: Path, state: State) -> None:
    """Keep the state in the cluster's folder."""
    _file(folder).write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")


def read_state(folder: Path) -> State | None:
    """The state of the cluster in ``folder``; None if none was started."""
    try:
        return State(**json.loads(_file(folder).read_text("utf-8")))
    except FileNotFoundError:
        return None


def clear_state(folder: Path) -> None:
    """Forget it: nothing of the cluster is running any more."""
    _file(folder).unlink(missing_ok=True)


def mark_up(folder: Path, up: bool) -> None:
    """Say whether the cluster is up: until it is, a process that ends ends all; then ``deploy/keep`` restarts it."""
    if up:
        _mark(folder).touch()
    else:
        _mark(folder).unlink(missing_ok=True)


def is_up(folder: Path) -> bool:
    """Whether the cluster has become healthy and was not stopped since."""
    return _mark(folder).exists()


def _mark(folder: Path) -> Path:
    return folder / "up"


def _file(folder: Path) -> Path:
    return folder / "state.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from starting or stopping the cluster while the block runs.

    Raises:
        UnavailableError: Another is at it.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UnavailableError(
                f"another command is starting or stopping the cluster in {folder}; wait for it"
            ) from error
        yield
