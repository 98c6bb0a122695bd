"""A run in which every test was skipped has shown nothing, and must not end like one that passed."""

import pytest


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    stats = session.config.pluginmanager.getplugin("terminalreporter").stats
    if exitstatus == 0 and stats.get("skipped") and not stats.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
