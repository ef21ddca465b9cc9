"""Writing files so that a failure leaves the old one or none."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile


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
