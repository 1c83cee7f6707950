"""What reads the arguments of a command, and says in one sentence what is wrong with them."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser whose commands complain themselves; those of argparse leave that to the bare program."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments, and refuse those that nothing takes."""
        given = list(sys.argv[1:] if args is None else args)
        known, left = super().parse_known_args(given, namespace)
        if left and not self._take_late(known, left):
            self.error(self._explain(left, given))
        return known, []

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and who knows better, without the usage of thirty options before it."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def _take_late(self, known: argparse.Namespace, left: Sequence[str]) -> bool:
        """Take what comes after an option as the argument that may be left out; argparse of Python 3.11 does not."""
        for action in self._actions:
            # The default itself, and not a word that is spelt like it.
            is_open = action.nargs == "?" and getattr(known, action.dest) is action.default
            if is_open and not action.option_strings and len(left) == 1 and not left[0].startswith("-"):
                setattr(known, action.dest, left[0])
                return True
        return False

    def _explain(self, left: Sequence[str], given: Sequence[str]) -> str:
        word = next((word for word in left if word.startswith("-")), left[0])
        if word.startswith("-"):
            near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1, cutoff=0.7)
            return f"there is no option {word}" + (f": did you mean {near[0]}?" if near else "")
        before = given[: given.index(word)]
        option = next((word.partition("=")[0] for word in reversed(before) if word.startswith("-")), None)
        action = self._option_string_actions.get(option or "")
        if action is None or action.nargs is not None:
            return f"{word!r} is one argument too many"
        if isinstance(action, argparse._AppendAction):
            return f"{option} takes one value, and {word!r} is another: repeat {option} for each"
        return f"{option} takes one value, and {word!r} is another: quote a value that has blanks"
