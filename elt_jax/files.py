"""Files written whole or not at all, and arrays read without pickle."""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import tempfile
import zipfile

import numpy as np


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`, renamed onto it on success."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(
    dir=path.parent, prefix=f'.{path.name}.', suffix=path.suffix
  )
  os.close(handle)
  # Private as made; the result is to be as readable as any file of the user.
  umask = os.umask(0)
  os.umask(umask)
  os.chmod(name, 0o666 & ~umask)
  try:
    yield pathlib.Path(name)
    os.replace(name, path)
  except BaseException:
    pathlib.Path(name).unlink(missing_ok=True)
    raise


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes `text` whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text)


def read_npz(
  path: str | pathlib.Path, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """The arrays of an .npz file: all, or those of `names`, which must be there.

  Raises:
    OSError: if there is no such file.
    ValueError: if it is damaged, holds pickled objects, or lacks an array.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      stored = arrays.files
      wanted = stored if names is None else names
      found = {name: arrays[name] for name in wanted if name in stored}
  except (ValueError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(f'{path} is not a readable .npz file: {e}') from e
  if missing := [name for name in wanted if name not in stored]:
    raise ValueError(f'{path} lacks {missing}; it has {stored}.')
  return found
