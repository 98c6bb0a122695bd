"""What the documents tell to type is what Makefile and programs take."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "*/README.md", "k8s/*/README.md")
    for page in ROOT.glob(pattern)
)
# What a program filled in says what was typed then.
FILLED = re.compile(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", re.DOTALL)
# To the end of the line or of the code in it. A name alone is no command. The store's are in
# tests/store; `python -m loadtest` hands its own to Locust, which patches the standard library.
PROGRAM = re.compile(
    r"-m ((?:training|model|kfp_pipelines|loadtest\.capacity|tests\.benchmarks)[\w.]*)"
    r" ((?:[^\n`\\]|\\\n)+)"
)
MAKE = re.compile(r"(?:^ {4}|`)(?:\w+=\S+ )*make ((?:[^\n`\\]|\\\n)+)", re.MULTILINE)


class Parsed(Exception):
    """The arguments are right; what would be done with them is not."""


def words(typed: str) -> list[str]:
    """The words of a command, to the shell's next sign."""
    lexer = shlex.shlex(typed.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(takewhile(lambda word: set(word) - set("();<>|&"), lexer))


def found(pattern: re.Pattern[str]) -> list[Any]:
    """The commands, each once, named by the first page that has it."""
    commands: dict[tuple[str, ...], str] = {}
    for page in PAGES:
        for match in pattern.finditer(FILLED.sub("", page.read_text(encoding="utf-8"))):
            *module, typed = match.groups()
            asked = words(typed)
            name = f"{page.relative_to(ROOT)}: {' '.join([*module, *asked])}"
            commands.setdefault((*module, shlex.join(asked)), name)
    return [pytest.param(*command, id=name) for command, name in commands.items()]


def then_stop(parse: Callable[..., object]) -> Callable[..., None]:
    def stopping(*arguments: Any, **named: Any) -> None:
        parse(*arguments, **named)
        raise Parsed

    return stopping


def check(module: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program until it has parsed its arguments."""
    is_package = (ROOT / module.replace(".", "/")).is_dir()
    program = importlib.import_module(f"{module}.__main__" if is_package else module)
    with monkeypatch.context() as patch:
        patch.chdir(ROOT)  # --config names a file
        patch.setenv("STENO_STORE", "s3://bucket")
        patch.setenv("KFP_HOST", "https://kubeflow.example")
        patch.setattr("sys.argv", [module, *words(typed)])
        parser = argparse.ArgumentParser
        patch.setattr(parser, "parse_args", then_stop(parser.parse_args))
        if hasattr(program, "parse_config"):
            patch.setattr(program, "parse_config", then_stop(program.parse_config))
        try:
            program.main()
        except Parsed:
            return
        except SystemExit as ended:
            if ended.code:  # --help ends with 0
                pytest.fail(f"{module} does not take {typed}")
        else:
            pytest.fail(f"{module} parsed nothing of {typed}")


@pytest.mark.parametrize(("module", "typed"), found(PROGRAM))
def test_a_program_takes_its_arguments(
    module: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(module, typed, monkeypatch)


@pytest.mark.parametrize("typed", found(MAKE))
def test_a_target_makes_commands_that_programs_take(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `make test ARGS=…` hands its own variables down, and they are no part of what is typed.
    environment = {"PATH": os.environ["PATH"]}
    asked = words(typed)
    told = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *asked],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    if any("=" in word for word in asked):  # without its values `make train` is a name
        for match in PROGRAM.finditer(told.stdout):
            check(*match.groups(), monkeypatch)


def test_commands_are_found() -> None:
    assert len(list(found(PROGRAM))) > 20
    assert len(list(found(MAKE))) > 20
