"""The command ``espnet-ext VERB``. One module of this folder is one verb, imported on use.

A verb module has a docstring (first line: what it does; the rest: an example),
``add_arguments(parser)`` and ``run(args)``; it imports torch or ESPnet only inside ``run``.
"""

import argparse
import ast
import importlib
import io
import re
import sys
from pathlib import Path
from typing import NoReturn

from espnet_ext.errors import nearest, run_cli

VERBS = (
    "fetch",
    "check",
    "footprint",
    "variants",
    "features",
    "tokens",
    "mimic",
    "train",
    "deploy",
    "decode",
    "export",
    "demo",
    "transcribe",
    "label",
    "stream",
    "score",
    "report",
    "grid",
    "similarity",
    "prune",
)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever PYTHONIOENCODING says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if arguments else 2)
    verb = arguments[0]
    if verb not in VERBS:
        print(f"espnet-ext: error: unknown verb {nearest(verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(f"espnet_ext.cli.{verb}")
    parser = Parser(
        prog=f"espnet-ext {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parse(parser, arguments[1:])
    sys.exit(run_cli(f"espnet-ext {verb}", lambda: module.run(args)))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest known option."""

    def error(self, message: str) -> NoReturn:
        """End with the message."""
        unknown = re.match("unrecognized arguments: (-[^ =]*)", message)
        if unknown:
            known = re.findall(r"--[\w-]+", self.format_usage())
            message = f"unknown option {nearest(unknown[1], known)}"
        advice = f"'{self.prog} --help' has an example"
        self.exit(2, f"{self.prog}: error: {message}; {advice}\n")


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse a verb's words; those after ``--`` go as they are to ``espnet``, if it has that.

    argparse alone would give a list after a positional argument only the next words.
    """
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    if "espnet" in args:
        args.espnet = words[cut + 1 :]
    elif cut < len(words):
        parser.error("this verb takes no options after --")
    return args


def _overview() -> str:
    lines = ["usage: espnet-ext VERB [options]; 'espnet-ext VERB --help' has an example", ""]
    for verb in VERBS:
        # The docstring is read without importing the module: help must not wait for torch.
        source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
        lines.append(f"  {verb:10} {summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
