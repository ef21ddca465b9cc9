"""Files of OpenAI's guided-diffusion evaluations: references and samples.

    arr_0            uint8 [n, h, w, 3], images
    mu, sigma        of their pool features, [2048] and [2048, 2048]
    mu_s, sigma_s    of their spatial features, [2023] and [2023, 2023]
    recipe           JSON, of those made here (`evals.fid_reference`)

A reference as it is published, VIRTUAL_imagenet256_labeled.npz, has the moments
of the whole training set and 10,000 of its images; samples have arr_0 alone.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import math
from typing import IO, Any
import zipfile

from etils import epath
import numpy as np

from elt_jax import files

_MOMENTS = {'pool': ('mu', 'sigma', 2048), 'spatial': ('mu_s', 'sigma_s', 2023)}


class Reference:
  """What a file has, each read when it is asked for."""

  def __init__(self, path: epath.PathLike):
    """Looks at the names of the arrays.

    Raises:
      ValueError: if the file is missing, damaged, or has no array of a name
        that is read here.
    """
    self.path = path
    if not epath.Path(path).is_file():
      raise ValueError(f'--reference: there is no file {path}.')
    try:
      with epath.Path(path).open('rb') as file:
        stored = zipfile.ZipFile(file).namelist()
    except zipfile.BadZipFile as e:
      raise ValueError(f'{path} is not a readable .npz file: {e}') from e
    self.names = [name.removesuffix('.npy') for name in stored]
    if not {'mu', 'arr_0'} & set(self.names):
      raise ValueError(
        f'{path} has the arrays {self.names}; expected mu and sigma, or arr_0.'
      )

  def has_moments(self, features: str) -> bool:
    """Whether there are those of 'pool' or 'spatial'."""
    return _MOMENTS[features][0] in self.names

  def moments(self, features: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, covariance) of 'pool' or 'spatial', float64; None if not there.

    Raises:
      ValueError: if they are damaged, of another shape or not finite.
    """
    if not self.has_moments(features):
      return None
    mean, covariance, size = _MOMENTS[features]
    found = files.read_npz(self.path, (mean, covariance))
    for name, shape in ((mean, (size,)), (covariance, (size, size))):
      value = found[name]
      if value.shape != shape or not np.isfinite(value).all():
        raise ValueError(
          f'{self.path}: {name} is {value.dtype} {value.shape}; expected '
          f'finite numbers of shape {shape}.'
        )
    return found[mean].astype(np.float64), found[covariance].astype(np.float64)

  def count(self) -> int | None:
    """How many images there are, which are not read; None without any.

    Raises:
      ValueError: if they are of another kind.
    """
    if 'arr_0' not in self.names:
      return None
    with self._images() as (_, shape):
      return shape[0]

  def recipe(self) -> dict[str, Any]:
    """Of which images it is; {} where that is not known.

    Raises:
      ValueError: if it is damaged.
    """
    if 'recipe' not in self.names:
      return {}
    text = str(files.read_npz(self.path, ('recipe',))['recipe'])
    try:
      found = json.loads(text)
    except ValueError as e:
      raise ValueError(f'{self.path} is damaged: its recipe is {text}.') from e
    return found

  def images(self, size: int) -> Iterator[np.ndarray]:
    """Yields uint8 [n, h, w, c], n at most `size`; all would fill the memory.

    Raises:
      ValueError: if they are of another kind, or cut short.
    """
    with self._images() as (member, (count, *shape)):
      for start in range(0, count, size):
        n = min(size, count - start)
        data = member.read(n * math.prod(shape))
        yield np.frombuffer(data, np.uint8).reshape(n, *shape)

  @contextlib.contextmanager
  def _images(self) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Yields arr_0's bytes, from those of its first image on, and its shape."""
    try:
      with (
        epath.Path(self.path).open('rb') as file,
        zipfile.ZipFile(file) as archive,
        archive.open('arr_0.npy') as member,
      ):
        major, _ = np.lib.format.read_magic(member)
        read = {
          1: np.lib.format.read_array_header_1_0,
          2: np.lib.format.read_array_header_2_0,
        }[major]
        shape, by_columns, dtype = read(member)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
          raise _Other(
            f'arr_0 is {dtype} {shape}; expected images, uint8 [n, h, w, 1 or '
            '3]'
          )
        if by_columns:
          raise _Other('arr_0 is stored by columns; save a C-ordered copy')
        yield member, shape
    except _Other as e:
      raise ValueError(f'{self.path}: {e}.') from None
    except (OSError, GeneratorExit):
      raise
    except Exception as e:  # Of a damaged file: zlib's, and any of a header.
      raise ValueError(f'{self.path} is not a readable .npz file: {e}') from e


class _Other(ValueError):
  """The file has images of another kind."""


class Writer:
  """Adds images to arr_0, then what is known of them; see `writing`."""

  def __init__(self, archive: zipfile.ZipFile, count: int):
    self._archive, self._count = archive, count
    self._images = archive.open('arr_0.npy', 'w', force_zip64=True)
    self.added = 0

  def add(self, images: np.ndarray) -> None:
    """Takes in uint8 [n, h, w, c], or clips."""
    if not self.added:
      header = {
        'descr': np.lib.format.dtype_to_descr(images.dtype),
        'fortran_order': False,
        'shape': (self._count, *images.shape[1:]),
      }
      np.lib.format.write_array_header_1_0(self._images, header)
    self._images.write(np.ascontiguousarray(images).tobytes())
    self.added += len(images)

  def close(self) -> None:
    self._images.close()

  def describe(
    self,
    moments: Mapping[str, tuple[np.ndarray, np.ndarray]],
    recipe: Mapping[str, Any],
  ) -> None:
    """Adds (mean, covariance) of 'pool' and 'spatial', after all images."""
    self.close()
    arrays = {'recipe': np.array(json.dumps(recipe))}
    for features, (mean, covariance) in moments.items():
      name_of_mean, name_of_covariance, _ = _MOMENTS[features]
      arrays |= {name_of_mean: mean, name_of_covariance: covariance}
    for name, value in arrays.items():
      with self._archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, value, allow_pickle=False)


@contextlib.contextmanager
def writing(path: epath.PathLike, count: int) -> Iterator[Writer]:
  """Yields what writes `count` images to a file.

  They are never all in memory: 50,000 of 256 x 256 take 10 GB.

  Raises:
    ValueError: if there were fewer or more.
  """
  with (
    files.replacing(path) as temporary,
    zipfile.ZipFile(temporary, 'w') as archive,
    contextlib.closing(Writer(archive, count)) as writer,
  ):
    yield writer
    if writer.added != count:
      raise ValueError(
        f'{path}: {writer.added} of {count} images were written.'
      )
