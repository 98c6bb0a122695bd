"""What can go wrong with a store. No message holds a key, a token or a password."""


class StoreError(RuntimeError):
    """Something in the store or on the way to it; the message says what, where and what would help."""


class NotFound(StoreError):
    """There is nothing under this name."""


class Conflict(StoreError):
    """What was to be written is there already, or is not any more what it was thought to be."""


class Denied(StoreError):
    """The credentials are missing, wrong, expired, or do not allow this."""


class Unavailable(StoreError):
    """The store could not be reached, or answered with its own failure, however often it was asked."""


class Corrupted(StoreError):
    """What the store holds, or what arrived, is not what was once written."""
