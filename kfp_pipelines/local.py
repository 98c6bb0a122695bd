"""The pipeline on this machine: the same definition, each step a process, TorchServe as the release."""

import builtins
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import local

from kfp_pipelines.local_serving import LocalServing, local_release
from kfp_pipelines.pipeline import retraining
from kfp_pipelines.steps import LOCAL_RELEASE, ROOT
from store import StoreConfig


class RunFailed(RuntimeError):
    """A step of a local run failed."""


@contextmanager
def local_session(
    store: StoreConfig, folder: Path, *, caching: bool = True
) -> Iterator[tuple[LocalServing, "Runner"]]:
    """A serving release on this machine, and what runs the pipeline against it.

    Args:
        folder: gets the steps' outputs, the cache, and the release's status and log.
        caching: take steps over from earlier runs in this folder.
    """
    folder = folder.resolve()
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with local_release(store, folder) as release:
        variables = {
            LOCAL_RELEASE: str(release.status),
            "STENO_SCRATCH": str(scratch),
            # Steps are started in the folder that this process is in.
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        yield release, Runner(store, folder, caching, variables)


class Runner:
    """Runs the pipeline in processes of this machine."""

    def __init__(
        self, store: StoreConfig, folder: Path, caching: bool, variables: Mapping[str, str]
    ) -> None:
        self.store, self.folder = store, folder
        self.caching, self.variables = caching, variables

    def run(self, parameters: Mapping[str, Any]) -> None:
        """Run the pipeline from its first step to its last.

        Raises:
            RunFailed: a step failed; its output was printed.
        """
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self.folder / "runs"),
            enable_caching=self.caching,
            cache_root=str(self.folder / "cache"),
        )
        with _environment(self.variables), _same_output(), warnings.catch_warnings():
            # Pods' resources and images mean nothing here.
            warnings.simplefilter("ignore")
            try:
                _once()(store=self.store.url, **parameters)
            except RuntimeError as error:
                raise RunFailed(str(error)) from None


def _once() -> Any:
    """The pipeline without further attempts: nobody takes this machine away in the meantime."""
    pipeline = copy.deepcopy(retraining)
    spec = pipeline.pipeline_spec
    for graph in (spec.root, *spec.components.values()):
        for task in graph.dag.tasks.values():
            task.ClearField("retry_policy")
    return pipeline


@contextmanager
def _same_output() -> Iterator[None]:
    """Give `print` and the root logger back as they were.

    kfp 2 replaces both while a step runs, to indent and to format its output. Of two steps at once,
    the one that ends last puts the other's replacement back, and with it everything that this process
    says later stays indented, or goes to a stream that is closed by then.
    """
    root = logging.getLogger()
    former, level, handlers = builtins.print, root.level, root.handlers[:]
    try:
        yield
    finally:
        builtins.print = former
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
