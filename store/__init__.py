"""The model store: versions in S3 or in a folder, and the pointer to the one in production."""

from store.config import StoreConfig
from store.errors import Conflict, Corrupted, Denied, NotFound, StoreError, Unavailable
from store.models import ModelStore, Production, Release, open_objects
from store.objects import Objects, Stat
from store.patience import patiently

__all__ = [
    "Conflict",
    "Corrupted",
    "Denied",
    "ModelStore",
    "NotFound",
    "Objects",
    "Production",
    "Release",
    "Stat",
    "StoreConfig",
    "StoreError",
    "Unavailable",
    "open_objects",
    "patiently",
]
