"""An S3 server as a store: MinIO, Ceph, Amazon's."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.datatypes import PostPolicy
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.sse import SseS3

from services.common.store.base import Opened, Store, StoredObject, Upload, missing
from services.common.store.uri import Location
from vlmir.errors import UnavailableError

__all__ = ["S3Store"]

log = logging.getLogger("vlmir.store")

_CHUNK = 1 << 20
_DIGEST = "x-amz-meta-sha256"
_ENCRYPTION = ("x-amz-server-side-encryption", "AES256")
# The package's own are minutes of waiting: 5 tries, 5 minutes each.
_TIMEOUT = urllib3.Timeout(connect=1.0, read=10.0)
_RETRIES = urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504))
_LEAST_PART = 5 << 20
_RULE = "vlmir-"
_MISSING = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "ResourceNotFound"}
_TAKEN = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


class S3Store(Store):
    """Objects in an S3 server.

    Args:
        url: ``http(s)://host:port`` as this server reaches it.
        bucket: Bucket that is written; it is made where it is missing and that is allowed.
        readable: Other buckets that are read.
        expiry: First part of the key → days after which the S3 server removes objects.
        access_key: Name of the account.
        secret_key: Its secret.
        region: Region, which is part of every signature.
        public_url: ``http(s)://host:port`` as clients reach it, for links; None: as this server does.
        encrypt: Ask the S3 server to encrypt what it stores (SSE-S3).
        ca_file: Certificates to trust; None: the public ones.
    """

    remote = True

    def __init__(
        self,
        url: str,
        bucket: str,
        readable: Collection[str],
        expiry: Mapping[str, int],
        *,
        access_key: str,
        secret_key: str,
        region: str,
        public_url: str | None = None,
        encrypt: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        super().__init__(bucket, readable)
        self._url, self._public_url = url, (public_url or url).rstrip("/")
        self._expiry, self._encrypt = dict(expiry), encrypt
        pool = urllib3.PoolManager(
            num_pools=4,
            maxsize=16,
            timeout=_TIMEOUT,
            retries=_RETRIES,
            cert_reqs="CERT_REQUIRED",
            ca_certs=str(ca_file or certifi.where()),
        )

        def connect(address: str) -> Minio:
            parts = urlsplit(address)
            return Minio(
                parts.netloc,
                access_key,
                secret_key,
                secure=parts.scheme == "https",
                region=region,  # else it is asked for, even to sign a link
                http_client=pool,
            )

        # A link is signed for the host in it, and signing needs no connection.
        self._client, self._signer = connect(url), connect(self._public_url)

    def prepare(self) -> None:
        """Make the bucket, and have old objects removed from it, as far as the account may.

        Raises:
            UnavailableError: The server does not answer, or refuses the account.
        """
        with self._translated():
            if not self._client.bucket_exists(self.bucket):
                self._make_bucket()
        try:
            self._expire()
        except S3Error as error:
            log.warning(
                "objects in %s will not expire: the store answers %s", self.bucket, error.code
            )

    def _make_bucket(self) -> None:
        try:
            self._client.make_bucket(self.bucket)
        except S3Error as error:  # another server of ours was quicker
            if error.code not in _TAKEN:
                raise

    def _expire(self) -> None:
        """Set our rules beside those that others may have set on the bucket."""
        present = self._client.get_bucket_lifecycle(self.bucket)
        others = [
            rule
            for rule in (present.rules if present else [])
            if not (rule.rule_id or "").startswith(_RULE)
        ]
        ours = [
            Rule(
                status=ENABLED,
                rule_filter=Filter(prefix=f"{folder}/"),
                rule_id=_RULE + folder,
                expiration=Expiration(days=days),
            )
            for folder, days in self._expiry.items()
        ]
        if ours or others:
            self._client.set_bucket_lifecycle(self.bucket, LifecycleConfig(others + ours))
        elif present:
            self._client.delete_bucket_lifecycle(self.bucket)

    def _write(self, location: Location, data: bytes, content_type: str, sha256: str) -> None:
        with self._translated():
            self._client.put_object(
                location.bucket,
                location.key,
                BytesIO(data),
                len(data),
                content_type,
                metadata={_DIGEST: sha256},
                sse=SseS3() if self._encrypt else None,
                part_size=max(len(data), _LEAST_PART),  # in one piece: all of it or nothing
            )

    @contextmanager
    def _open(self, location: Location) -> Iterator[Opened]:
        with (
            self._translated(location),
            # Closed, not drained: what is left of an object too big is not even received.
            closing(self._client.get_object(location.bucket, location.key)) as response,
        ):
            length = response.headers.get("content-length")
            yield Opened(
                size=None if length is None else int(length),
                content_type=response.headers.get("content-type", ""),
                sha256=response.headers.get(_DIGEST),
                chunks=response.stream(_CHUNK, decode_content=False),
            )

    def _stat(self, location: Location) -> StoredObject:
        with self._translated(location):
            found = self._client.stat_object(location.bucket, location.key)
        metadata: Mapping[str, Any] = found.metadata or {}
        return StoredObject(
            uri=str(location),
            size=found.size or 0,
            content_type=found.content_type or "application/octet-stream",
            sha256=metadata.get(_DIGEST),
        )

    def _link(self, location: Location, expires_s: int) -> str:
        expires = timedelta(seconds=expires_s)
        return self._signer.presigned_get_object(location.bucket, location.key, expires)

    def _upload(self, location: Location, size: int, sha256: str, expires_s: int) -> Upload:
        end = datetime.now(UTC) + timedelta(seconds=expires_s)
        policy = PostPolicy(location.bucket, end)
        fixed = {"key": location.key, _DIGEST: sha256}
        if self._encrypt:
            fixed |= [_ENCRYPTION]
        for name, value in fixed.items():
            policy.add_equals_condition(name, value)
        policy.add_content_length_range_condition(size, size)
        return Upload(
            uri=str(location),
            link=f"{self._public_url}/{location.bucket}",
            fields=fixed | self._signer.presigned_post_policy(policy),
            expires_s=expires_s,
        )

    def _delete(self, location: Location) -> None:
        with self._translated():
            self._client.remove_object(location.bucket, location.key)

    def _keys(self, folder: Location) -> Iterable[str]:
        with self._translated():
            found = self._client.list_objects(folder.bucket, f"{folder.key}/", recursive=True)
            return [one.object_name for one in found if one.object_name is not None]

    @contextmanager
    def _translated(self, location: Location | None = None) -> Iterator[None]:
        """Turn the client's errors into the library's; ``location`` is what a caller wants to read."""
        try:
            yield
        except S3Error as error:
            hidden = error.code == "AccessDenied" and location is not None
            if location is not None and (error.code in _MISSING or hidden):
                # S3 says "denied" of what is not there, too, to an account that may not list.
                raise missing(location) from error
            raise UnavailableError(
                f"The store at {self._url} refuses ({error.code}); check VLMIR_STORE_ACCESS_KEY, its secret and its "
                "rights on the bucket."
            ) from error
        except (InvalidResponseError, ServerError) as error:
            raise UnavailableError(
                f"What answers at {self._url} is no S3 server in good health; check VLMIR_STORE_URL."
            ) from error
        except urllib3.exceptions.HTTPError as error:
            if isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError):
                raise UnavailableError(
                    f"The certificate of the store at {self._url} is not trusted; check VLMIR_STORE_CA_FILE."
                ) from error
            raise UnavailableError(
                f"The store at {self._url} does not answer; start it, or check VLMIR_STORE_URL."
            ) from error
