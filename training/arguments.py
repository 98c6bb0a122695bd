"""Command lines made from configuration classes."""

import sys
from collections.abc import Sequence
from typing import TypeVar

from jsonargparse import ArgumentParser
from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)


def parse_config(
    config: type[Config],
    prog: str,
    arguments: Sequence[str] | None = None,
    *,
    several: Sequence[str] = (),
) -> Config:
    """Read `config` from the command line, and from a YAML file given as `--config`.

    The fields named in `several` take any number of words (`--input A B`). An option may be written
    with dashes, as `--language-model`, or as its field. A wrong value, an unknown key or a set of
    values that the class refuses ends the process with status 2 and a message, as argparse does.
    """
    parser = ArgumentParser(prog=prog, description=config.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of these values")
    for name in several:
        field = config.model_fields[name]
        parser.add_argument(f"--{name}", nargs="+", type=str, help=field.description)
    parser.add_class_arguments(config, skip=set(several))
    words = sys.argv[1:] if arguments is None else arguments
    values = parser.parse_args([_underscored(word) for word in words]).as_dict()
    del values["config"]
    for name in several:
        if values[name] is None:  # not given: the class has the default
            del values[name]
    try:
        return config(**values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'together'}: {problem['msg']}"
            for problem in error.errors()
        ]
        parser.error("; ".join(problems))


def _underscored(word: str) -> str:
    """`--language_model=A-B` for `--language-model=A-B`; what is no option stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
