"""Settings of all tests."""

from hypothesis import settings

# By default an example that takes 0.2 s fails, which on a busy machine says nothing about the code.
settings.register_profile("steno", deadline=None)
settings.load_profile("steno")
