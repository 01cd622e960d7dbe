"""Where pictures, results and big arrays lie outside of messages: an S3 server (MinIO), or a local folder."""

from __future__ import annotations

from services.common.store.base import (
    RESULTS,
    TENSORS,
    UPLOADS,
    Store,
    StoredObject,
    Upload,
)
from services.common.store.settings import StoreSettings, make_store, open_store

__all__ = [
    "RESULTS",
    "TENSORS",
    "UPLOADS",
    "Store",
    "StoreSettings",
    "StoredObject",
    "Upload",
    "make_store",
    "open_store",
]
