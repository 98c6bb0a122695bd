"""Whether other workers are at work; test_drain.py has what a drain sees of it."""

import subprocess
import sys
from pathlib import Path

from handler.busy import Colleagues, is_busy
from training.package import ROOT


def test_a_worker_sees_others_only_while_they_work(tmp_path: Path) -> None:
    one, other, third = (Colleagues(tmp_path) for _ in range(3))
    with one.joined():
        assert not one.are_at_work()
        with other.joined(), third.joined():
            # Asking takes no one's own place away.
            for _ in range(3):
                assert one.are_at_work() and other.are_at_work() and third.are_at_work()
        assert not one.are_at_work()
    with other.joined():
        assert not other.are_at_work()
    assert not is_busy(tmp_path)


def test_a_killed_worker_is_not_at_work(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from handler.busy import Colleagues\n"
        "with Colleagues(pathlib.Path(sys.argv[1])).joined(): print('in', flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"in\n"
    own = Colleagues(tmp_path)
    with own.joined():
        assert own.are_at_work()
        worker.kill()
        worker.wait()
        assert not own.are_at_work()
