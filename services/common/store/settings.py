"""Which store a server uses: environment variables only, since a command line shows secrets to everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.common.store.base import RESULTS, TENSORS, UPLOADS, Store
from services.common.store.folder import FolderStore
from services.common.store.uri import BUCKET
from vlmir.errors import OptionError, UnavailableError

__all__ = ["StoreSettings", "make_store", "open_store"]

_PREFIX = "VLMIR_STORE_"


class StoreSettings(BaseSettings):
    """The store, from ``VLMIR_STORE_…`` variables."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", frozen=True)

    url: str | None = Field(
        None, description="http(s)://host:port of an S3 server, or a folder's path; none: no store."
    )
    public_url: str | None = Field(
        None, description="http(s)://host:port of the S3 server as clients reach it, for links."
    )
    region: str = Field("us-east-1", description="Region of the S3 server.")
    access_key: str = Field("", description="Account on the S3 server.")
    secret_key: SecretStr = Field(SecretStr(""), description="The account's secret.")
    secret_key_file: Path | None = Field(None, description="File that holds the secret instead.")
    ca_file: Path | None = Field(None, description="Certificates to trust, as PEM.")
    bucket: str = Field("vlmir", description="Bucket that is written; made where it is missing.")
    readable: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Other buckets from which pictures are read, separated by commas."
    )
    results_days: int = Field(7, ge=0, description="Days that results are kept; 0 for ever.")
    uploads_days: int = Field(1, ge=0, description="Days that uploads and arrays are kept.")
    link_s: int = Field(
        3600, ge=1, le=604_800, description="Seconds for which a link in a reply holds."
    )
    tensors_above: int = Field(
        32 << 20,
        ge=0,
        description="Arrays between services travel by way of the store if they have more bytes.",
    )
    encrypt: bool = Field(False, description="Ask the S3 server to encrypt what it stores.")

    @field_validator("readable", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("bucket", "readable")
    @classmethod
    def _named_well(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if not BUCKET.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no bucket's name: 3 to 63 small letters, digits, dots, hyphens"
                )
        return value

    @field_validator("url", "public_url")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if parts.scheme in ("http", "https") and (
            not parts.hostname or parts.username or parts.path.strip("/") or parts.query
        ):
            raise ValueError("must be http(s)://host:port and no more")
        return value or None

    @model_validator(mode="after")
    def _has_keys(self) -> StoreSettings:
        secrets = bool(self.secret_key.get_secret_value()) + (self.secret_key_file is not None)
        if self.is_s3 and not (self.access_key and secrets == 1):
            raise ValueError(
                f"an S3 server needs {_PREFIX}ACCESS_KEY and one of {_PREFIX}SECRET_KEY and {_PREFIX}SECRET_KEY_FILE"
            )
        return self

    @property
    def is_s3(self) -> bool:
        """Whether the URL is an S3 server's, else it is a folder."""
        return (self.url or "").startswith(("http://", "https://"))

    @property
    def expiry(self) -> dict[str, int]:
        """First part of the key → days."""
        days = {RESULTS: self.results_days, UPLOADS: self.uploads_days, TENSORS: self.uploads_days}
        return {folder: number for folder, number in days.items() if number}

    @classmethod
    def from_environment(cls) -> StoreSettings:
        """The settings as the environment has them.

        Raises:
            OptionError: One is wrong; the message never has a value in it that could be a secret.
        """
        try:
            return cls.model_validate({})
        except ValidationError as error:
            fault = error.errors(include_input=False)[0]
            name = _PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else "the store"
            raise OptionError(f"{name}: {fault['msg'].removeprefix('Value error, ')}") from None


def open_store(settings: StoreSettings) -> Store | None:
    """The store of ``settings``, ready for use; None where none is configured.

    Raises:
        OptionError: The secret's file cannot be read.
        UnavailableError: The store does not answer, or does not let this server in.
    """
    store = make_store(settings)
    if store is not None:
        store.prepare()
    return store


def make_store(settings: StoreSettings) -> Store | None:
    """The store of ``settings``, not prepared: it need not answer yet; None where none is configured.

    Raises:
        OptionError: The secret's file cannot be read.
        UnavailableError: Its package is not installed.
    """
    if settings.url is None:
        return None
    return _s3_store(settings) if settings.is_s3 else _folder_store(settings)


def _folder_store(settings: StoreSettings) -> Store:
    path = (settings.url or "").removeprefix("file://")
    return FolderStore(Path(path), settings.bucket, settings.readable, settings.expiry)


def _s3_store(settings: StoreSettings) -> Store:
    try:
        from services.common.store.s3 import S3Store
    except ImportError as error:
        raise UnavailableError(
            "An S3 server as store needs the package minio; install vlmir[serve]."
        ) from error
    return S3Store(
        str(settings.url),
        settings.bucket,
        settings.readable,
        settings.expiry,
        access_key=settings.access_key,
        secret_key=_secret(settings),
        region=settings.region,
        public_url=settings.public_url,
        encrypt=settings.encrypt,
        ca_file=settings.ca_file,
    )


def _secret(settings: StoreSettings) -> str:
    if settings.secret_key_file is None:
        return settings.secret_key.get_secret_value()
    try:
        return settings.secret_key_file.read_text("utf-8").strip()
    except OSError as error:
        raise OptionError(
            f"{_PREFIX}SECRET_KEY_FILE: {settings.secret_key_file} cannot be read ({error.strerror})."
        ) from error
