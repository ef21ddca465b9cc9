"""Pickles that may name what is known here and nothing else.

A pickle may call any function; one of these stops at the first that is not
known, before anything has run.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import pathlib
import pickle
from typing import Any, ClassVar


class Refused(ValueError):
  """The pickle asks for, or holds, what is not known."""


class _Sealed:
  """A function that a pickle can call, and not change.

  Pickles set the attributes of what they name, a function's defaults too.
  """

  __slots__ = ('_function',)

  def __init__(self, function: Callable[..., Any]):
    self._function = function

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setstate__(self, state: Any) -> None:
    raise Refused('it would change what makes arrays; nothing was run.')


class Unpickler(pickle.Unpickler):
  """Reads a pickle of the names that a subclass knows.

  Attributes:
    known: (module, name) -> the function or type that stands for it.
  """

  known: ClassVar[Mapping[tuple[str, str], Any]]

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) in self.known:
      found = self.known[module, name]
      return found if isinstance(found, type) else _Sealed(found)
    raise Refused(
      f'it asks for {module}.{name}, which is not read here; nothing was run.'
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
