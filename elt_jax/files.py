"""Files written whole or not at all, and arrays read without pickle.

A workdir, and whatever is written into one, may lie in a bucket: its path is
then an address, gs://bucket/run, that `etils.epath` reads and writes.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import hashlib
import os
import pathlib
import tempfile
import zipfile

from etils import epath
import numpy as np
import safetensors
import safetensors.numpy


def is_address(path: epath.PathLike) -> bool:
  """Whether `path` is gs://..., and not of this machine's file system."""
  return '://' in os.fspath(path)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path of this machine, which becomes `path` on success.

  It is renamed; what is at an address appears as a whole once it is uploaded.
  """
  if is_address(path):
    with tempfile.TemporaryDirectory() as directory:
      temporary = pathlib.Path(directory) / epath.Path(path).name
      yield temporary
      try:
        epath.Path(temporary).copy(path, overwrite=True)
      except Exception as e:  # Of gcsfs or aiohttp; some say the request alone.
        raise OSError(
          f'{path} cannot be written ({type(e).__name__}: {e}). Look at the '
          'name of the bucket, and at who may write to it.'
        ) from e
    return
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


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes `text` whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text)


def try_lock(handle: int) -> bool:
  """Locks an open file or directory; False if another process has.

  Raises:
    OSError: where the file system has no locks.
  """
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def read_npz(
  path: epath.PathLike, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """The arrays of an .npz file: all, or those of `names`, which must be there.

  Raises:
    OSError: if there is no such file.
    ValueError: if it is damaged, holds pickled objects, or lacks an array.
  """
  path = epath.Path(path)
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      stored = arrays.files
      wanted = stored if names is None else names
      found = {name: arrays[name] for name in wanted if name in stored}
  except OSError:
    raise
  except Exception as e:  # Of a damaged file: zlib's, and any of a header.
    raise ValueError(f'{path} is not a readable .npz file: {e}') from e
  if missing := [name for name in wanted if name not in stored]:
    raise ValueError(f'{path} lacks {missing}; it has {stored}.')
  return found


def fingerprint_of_npz(path: epath.PathLike) -> str:
  """16 hexadecimal digits of its arrays' names, sizes and checksums.

  The arrays are not read: a reference of images takes gigabytes.

  Raises:
    ValueError: if it is damaged.
  """
  try:
    with epath.Path(path).open('rb') as file:
      stored = zipfile.ZipFile(file).infolist()
  except zipfile.BadZipFile as e:
    raise ValueError(f'{path} is not a readable .npz file: {e}') from e
  facts = sorted((of.filename, of.file_size, of.CRC) for of in stored)
  return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def check_shapes(
  path: epath.PathLike,
  arrays: Mapping[str, np.ndarray],
  wanted: Mapping[str, tuple[int, ...]],
  asks: str,
) -> None:
  """Raises ValueError unless `arrays` of a file are those wanted, and no more.

  Args:
    path: of the file.
    arrays: by name.
    wanted: name -> shape.
    asks: who wants them, as in 'its config.json asks for'.
  """
  for name in sorted(wanted.keys() | arrays.keys()):
    got = arrays[name].shape if name in arrays else 'missing'
    if got != wanted.get(name):
      raise ValueError(
        f'{path}: {name} is {got}, {asks} '
        f'{wanted.get(name, "nothing of that name")}.'
      )


def read_safetensors(path: epath.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a .safetensors file.

  Raises:
    OSError: if there is no such file.
    ValueError: if it is damaged, or of a type that numpy does not have.
  """
  try:
    return safetensors.numpy.load(epath.Path(path).read_bytes())
  except (safetensors.SafetensorError, ValueError) as e:
    raise ValueError(f'{path} is not a .safetensors file: {e}') from e
  except KeyError as e:
    raise ValueError(
      f'{path} has tensors of type {e}, which numpy does not have: convert it '
      'to float32.'
    ) from e
