"""Pickles that may name what is known here and nothing else.

A pickle may call any function; one of these stops at the first that is not
known, before anything has run.
"""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import pickle
from typing import Any, ClassVar


class Refused(ValueError):
  """The pickle asks for, or holds, what is not known."""


class Unpickler(pickle.Unpickler):
  """Reads a pickle of the names that a subclass knows.

  Attributes:
    known: (module, name) -> what stands for it.
  """

  known: ClassVar[Mapping[tuple[str, str], Any]]

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self.known:
      return self.known[module, name]
    raise Refused(
      f'it asks for {module}.{name}, which arrays do not take; nothing was run.'
    )


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns what a damaged or refused file of a `kind` raises into ValueError."""
  try:
    yield
  except Refused as e:
    raise ValueError(f'{path}: {e}') from None
  except Exception as e:  # Of a damaged pickle: nearly any.
    raise ValueError(
      f'{path} is not a readable {kind} ({type(e).__name__}: {e}).'
    ) from e
