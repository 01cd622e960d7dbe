"""Follows the registry's alias in a thread beside serving: fetch, check, load, switch, or leave things as they are.

It asks every few seconds, which takes MLflow 25 ms. MLflow's webhooks would not spare that: they keep their list for a
minute, and call no private address unless told to.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Generic, TypeVar

from services.common.registry import Registry, Version, open_for, release_name
from services.common.releases import Releases
from services.common.security import without_addresses
from vlmir.bundle import Bundle, load_bundle
from vlmir.errors import BundleError, UnavailableError

__all__ = ["Cache", "Follower"]

log = logging.getLogger("vlmir.releases")

M = TypeVar("M")


class Cache:
    """Downloaded versions, a folder each, for one part.

    Several processes may share it: a version's folder appears complete or not at all, and what is loaded needs no
    files.

    Args:
        folder: Where to; made where it is missing.
        part: The part whose files are kept.
    """

    KEPT = 2
    """Versions that stay beside those that are held."""

    _PARTIAL = ".partial-"
    _STALE_S = 3600.0

    def __init__(self, folder: Path, part: str) -> None:
        self._part = part
        self._folder = folder.expanduser() / part
        self._last = self._folder / "served"

    def get(self, version: Version, registry: Registry) -> Bundle:
        """A version, from here if it is here and whole, else from the registry; every digest checked.

        Raises:
            UnavailableError: It cannot be fetched at present.
            BundleError: It is damaged in the registry.
        """
        folder = self._folder / version.key
        if folder.is_dir():
            try:
                return open_for(self._part, folder, sampler=version.digest)
            except BundleError as error:
                log.warning("fetching version %s again: %s", version.number, error)
                shutil.rmtree(folder)
        try:
            return self._fetch(version, registry, folder)
        except OSError as error:  # such as a full disk
            raise UnavailableError(f"{self._folder} cannot be written: {error}.") from error

    def _fetch(self, version: Version, registry: Registry, folder: Path) -> Bundle:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=self._PARTIAL) as place:
            whole = Path(place) / "bundle"
            whole.mkdir()
            registry.fetch(version, self._part, whole)
            bundle = open_for(self._part, whole, sampler=version.digest)
            _write_through(whole)
            try:
                whole.rename(folder)
            except OSError:
                if not folder.is_dir():  # another process was faster
                    raise
        return dataclasses.replace(bundle, folder=folder)

    def has(self, key: str) -> bool:
        """Whether a version is here, whole or not."""
        return (self._folder / key).is_dir()

    def discard(self, key: str) -> None:
        """Forget a version, so that it is fetched anew."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def remember(self, key: str) -> None:
        """Note that a version is being served now."""
        os.utime(self._folder / key)
        new = self._last.with_name(f".served-{os.getpid()}")
        new.write_text(key, encoding="utf-8")
        new.replace(self._last)

    def last(self) -> tuple[str, Bundle] | None:
        """Key and files of the version served last; None if there is none.

        Raises:
            BundleError: It is damaged.
        """
        try:
            key = self._last.read_text("utf-8")
        except FileNotFoundError:
            return None
        return key, open_for(self._part, self._folder / key)

    def find(self, release: str) -> tuple[str, Bundle] | None:
        """Key and files of a version by its release's name; None if it is not here.

        Raises:
            BundleError: It is damaged.
        """
        for folder in self._versions():
            about = load_bundle(folder, parts=())
            if release == _release_name(about, folder.name):
                return folder.name, open_for(self._part, folder)
        return None

    def prune(self, held: set[str]) -> None:
        """Delete all but the versions held and those served last, and what a killed process left half done."""
        old = [folder for folder in self._versions()[self.KEPT :] if folder.name not in held]
        partial = self._folder.glob(f"{self._PARTIAL}*")
        stale = [path for path in partial if time.time() - path.stat().st_mtime > self._STALE_S]
        for path in [*old, *stale]:
            shutil.rmtree(path, ignore_errors=True)

    def _versions(self) -> list[Path]:
        """The folders of versions, the one served last first."""
        folders = (path for path in self._folder.glob("[0-9]*-*") if path.is_dir())
        return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)


def _write_through(folder: Path) -> None:
    """Put files onto the disk: after a power cut there must be no empty ones in a folder that is said to be whole."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _release_name(bundle: Bundle, key: str) -> str:
    return release_name(bundle.release, key.partition("-")[0])


class Follower(Generic[M]):
    """Lets ``releases`` serve what the registry names.

    Args:
        registry: What says which version is served.
        releases: What serves it.
        part: The service's part.
        cache: Where downloaded versions are kept.
        poll_s: Seconds between two looks.
        stand_in: Bundle, by name or path, to serve while neither registry nor cache has any; empty: wait.
    """

    def __init__(
        self,
        registry: Registry,
        releases: Releases[M],
        *,
        part: str,
        cache: Path,
        poll_s: float,
        stand_in: str = "",
    ) -> None:
        self._registry, self._releases, self._part = registry, releases, part
        self._cache, self._poll_s, self._stand_in = Cache(cache, part), poll_s, stand_in
        # Key of the version that was served or refused last.
        self._settled = ""
        # What cannot be had at present, a version by its key or the registry; so it is said once.
        self._trouble = ""
        # Release → key and files of what came from the registry and is held.
        self._held = dict[str, tuple[str, Bundle]]()
        # Keys of versions that did not load from the cache and were fetched anew for it.
        self._renewed = set[str]()
        # Whether nothing can stand in, now or later.
        self._in_vain = False
        self._stop = threading.Event()
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vlmir-follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def wait(self) -> None:
        """Return when the registry has been asked once, and what it named is loaded or refused; or after `stop`."""
        self._looked.wait()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Follow no longer; a download under way is left behind after ``timeout_s``."""
        self._stop.set()
        self._looked.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # whatever it is, serving goes on, and so does following
                log.exception("following the registry failed unexpectedly; it goes on")
            self._looked.set()
            self._stop.wait(self._poll_s)

    def look(self) -> None:
        """Ask the registry once and do what it says; free what is not needed any more."""
        what = "registry"
        try:
            version = self._registry.champion()
            if version is None:
                raise UnavailableError("The registry names no version to serve.")
            what = version.key
            self._follow(version)
        except UnavailableError as error:
            if self._trouble != what:
                log.warning("%s Trying again every %g s.", error, self._poll_s)
            self._trouble = what
        else:
            if self._trouble:
                log.info("the registry answers again")
            self._trouble = ""
        if not self._releases.names and not self._in_vain:
            self._find_stand_in()
        self._hold_wanted()
        self._releases.sweep()
        names = self._releases.names
        self._held = {name: held for name, held in self._held.items() if name in names}
        self._cache.prune({key for key, _ in self._held.values()})

    def _follow(self, version: Version) -> None:
        """Serve a version, or refuse it for as long as the alias stays.

        Raises:
            UnavailableError: It cannot be fetched at present.
        """
        if version.key == self._settled:
            return
        self._settled = ""
        release = release_name(version.name, version.number)
        was_here = self._cache.has(version.key)
        try:
            key, bundle = self._held.get(release, ("", None))
            if bundle is None or key != version.key:
                bundle = self._cache.get(version, self._registry)
            self._serve(release, version.key, bundle)
            self._releases.refused = ""
        except UnavailableError as error:
            self._releases.refused = f"{release}: {without_addresses(str(error))}"
            raise
        except Exception as error:  # a broken version may fail in any way
            why = without_addresses(str(error) or repr(error))
            if was_here:
                self._renew(version.key, release, why)
            self._releases.refuse(release, why)
            log.debug("refused because of", exc_info=True)
        self._settled = version.key

    def _renew(self, key: str, release: str, why: str) -> None:
        """Take a version that does not load out of the cache: its files may have been damaged there.

        Raises:
            UnavailableError: It is to be fetched again; not a second time for the same version.
        """
        if key in self._renewed:
            return
        self._renewed.add(key)
        self._cache.discard(key)
        self._releases.refused = f"{release}: {why}"
        raise UnavailableError(
            f"{release} does not load from the cache and is fetched anew: {why}."
        )

    def _serve(self, release: str, key: str, bundle: Bundle) -> None:
        self._releases.serve(release, bundle)
        self._held[release] = (key, bundle)
        try:
            self._cache.remember(key)
        except OSError as error:  # it is served all the same
            log.warning("a restart without the registry will not find %s: %s", release, error)

    def _hold_wanted(self) -> None:
        """Bring back an old release that requests ask for: another service may have refused the new one."""
        wanted, self._releases.wanted = self._releases.wanted, ""
        if not wanted or wanted in self._releases.names:
            return
        try:
            found = self._cache.find(wanted)
            if found is not None:
                self._releases.hold(wanted, found[1])
                self._held[wanted] = found
        except Exception as error:  # a broken version may fail in any way
            log.warning("%s is asked for and cannot be held: %s", wanted, error)

    def _find_stand_in(self) -> None:
        """With nothing to serve: what was served last time, else the bundle that was given."""
        self._in_vain = True
        for what, serve in (("cache", self._serve_last), ("bundle", self._serve_bundle)):
            try:
                if serve():
                    name = self._releases.names[0]
                    log.warning("serving %s of the %s until the registry is heard", name, what)
                    return
            except UnavailableError as error:  # such as a Triton that starts later
                log.warning("the %s cannot stand in yet: %s", what, error)
                self._in_vain = False
            except Exception as error:  # a broken bundle may fail in any way
                log.warning("the %s cannot stand in: %s", what, error)
        log.warning("nothing is served yet; trying again every %g s", self._poll_s)

    def _serve_last(self) -> bool:
        last = self._cache.last()
        if last is not None:
            key, bundle = last
            self._serve(_release_name(bundle, key), key, bundle)
        return last is not None

    def _serve_bundle(self) -> bool:
        if self._stand_in:
            bundle = open_for(self._part, self._stand_in)
            self._releases.serve(bundle.release, bundle)
        return bool(self._stand_in)
