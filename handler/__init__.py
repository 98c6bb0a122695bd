"""The thin adapter that TorchServe runs, its configuration, and the server started locally.

The path of a request: TorchServe hands a batch to `asr_handler`, `transport` gives each item's
parts as they came, `request` says what the caller asked for, `batch` turns the whole batch into
answers with one call of the recognizer, `metrics` reports what it took.
"""
