"""Directories of ArrayRecord shards: whole, or refused and gone on with.

    DIR/train-00000.array_record ...    records of a split
    DIR/metadata.json                   written last

A shard is written under another name and renamed, and metadata.json appears
when all shards are there: a killed writer leaves a directory that is refused,
and that the same command completes; it writes anew what was lost, too. One
process writes at a time. Metadata have 'format', 'examples', of each split, and
'examples_per_shard'; equal metadata mean equal directories.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import json
import os
import pathlib
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import grain

from elt_jax import files

Metadata = dict[str, Any]
# (split, file, places of its examples in the split) of a shard to be written.
Job = tuple[str, pathlib.Path, range]


def paths(
  directory: pathlib.Path, metadata: Metadata, split: str
) -> list[pathlib.Path]:
  """The files of a split, in order."""
  count = -(-metadata['examples'][split] // metadata['examples_per_shard'])
  return [directory / f'{split}-{n:05d}.array_record' for n in range(count)]


@contextlib.contextmanager
def writing(directory: pathlib.Path, metadata: Metadata) -> Iterator[list[Job]]:
  """Claims `directory`, and declares it whole at the end.

  Yields what is left to be written, every shard that is not there.

  Raises:
    ValueError: if another process writes it, it is another one, whole or begun,
      or it has shards of which nothing is known.
  """
  directory.mkdir(parents=True, exist_ok=True)
  with _locked(directory):
    _begin(directory, metadata)
    size = metadata['examples_per_shard']
    yield [
      (split, path, range(count)[n * size : (n + 1) * size])
      for split, count in metadata['examples'].items()
      for n, path in enumerate(paths(directory, metadata, split))
      if not path.exists()
    ]
    if (unfinished := directory / 'unfinished.json').exists():
      files.write_text(directory / 'metadata.json', _json(metadata))
      unfinished.unlink()


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
  handle = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # Of a file system without locks.
      if not files.try_lock(handle):
        raise ValueError(
          f'{directory} is being written by another process; wait for its end, '
          'or end it.'
        )
    yield
  finally:
    os.close(handle)


def count(jobs: Iterable[Job]) -> int:
  """The examples of shards."""
  return sum(len(places) for _, _, places in jobs)


def _begin(directory: pathlib.Path, metadata: Metadata) -> None:
  """Raises as `writing` does."""
  for name in ('metadata.json', 'unfinished.json'):
    if not (directory / name).exists():
      continue
    there = _read_json(directory / name, ())
    differ = [
      f'{key}: {there.get(key)!s:.60} there, {metadata[key]!s:.60} here'
      for key in metadata
      if there.get(key) != metadata[key]
    ]
    if differ:
      raise ValueError(
        f'{directory} holds another cache ({"; ".join(differ)}). Use another '
        '--out, or delete the directory.'
      )
    # What a killed writer has left half written.
    for temporary in directory.glob('.*.array_record'):
      temporary.unlink()
    return
  if any(directory.glob('*.array_record')):
    raise ValueError(
      f'{directory} has shards and no metadata.json to say whose they are. Use '
      'another --out, or delete the directory.'
    )
  files.write_text(directory / 'unfinished.json', _json(metadata))


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a shard, whole or not at all."""
  with files.replacing(path) as temporary:
    # Groups of one record: training reads them in random order.
    writer = ArrayRecordWriter(str(temporary), 'group_size:1')
    for record in records:
      writer.write(record)
    writer.close()


def read_metadata(
  directory: pathlib.Path,
  kind: str,
  version: int,
  keys: Sequence[str],
  command: str = 'elt_jax.tokenize',
) -> Metadata:
  """The metadata of a whole directory.

  Args:
    directory: of the shards.
    kind: what they are, for messages, as in 'token cache'.
    version: 'format' that is read.
    keys: that must be there.
    command: that makes such directories.

  Raises:
    ValueError: if the directory is missing, unfinished, or of another kind or
      format.
  """
  path = directory / 'metadata.json'
  if not path.is_file():
    state = (
      f'is unfinished; run the same {command} command again'
      if (directory / 'unfinished.json').exists()
      else f'is not there; make it with python -m {command}'
    )
    raise ValueError(f'The {kind} {directory} {state}.')
  metadata = _read_json(path, keys)
  if metadata['format'] != version:
    raise ValueError(
      f'{directory} has format {metadata["format"]}, this code reads {version}.'
    )
  return metadata


class Records:
  """Random access to the records of files of one directory: bytes."""

  def __init__(self, found: Sequence[pathlib.Path], examples: int):
    """Opens the files.

    Args:
      found: the files, in order.
      examples: how many they are to have.

    Raises:
      ValueError: if a file is missing or damaged, examples are, or there is
        none.
    """
    if not found:
      raise ValueError('There are no shards to read: the split is empty.')
    self._directory = directory = found[0].parent
    if missing := [path.name for path in found if not path.is_file()]:
      raise ValueError(
        f'{directory} lacks shards: {missing[:5]}; they must be made again.'
      )
    several = f'{found[0].name} and the {len(found) - 1} shards after it'
    try:
      self._records = grain.sources.ArrayRecordDataSource(
        [str(p) for p in found]
      )
    except RuntimeError as e:  # What ArrayRecord raises on a file cut short.
      raise ValueError(
        f'{directory}: one of {several} is damaged: {e or "no reason given"}'
      ) from e
    if len(self) != examples:
      raise ValueError(
        f'{directory} has {len(self)} examples in {several}, its metadata say '
        f'{examples}.'
      )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> bytes:
    """Raises ValueError, naming the directory, on damage in a file."""
    try:
      return self._records[index]
    except RuntimeError as e:
      raise ValueError(
        f'{self._directory}: record {index} is damaged ({e}); its shard must '
        'be made again.'
      ) from e


def open_split(
  directory: pathlib.Path, metadata: Metadata, split: str
) -> Records:
  """Random access to the records of a split; raises as `Records`."""
  found = paths(directory, metadata, split)
  return Records(found, metadata['examples'][split])


def _read_json(path: pathlib.Path, keys: Sequence[str]) -> Metadata:
  """Raises ValueError unless the file is JSON with `keys`."""
  try:
    metadata = json.loads(path.read_text())
    missing = [key for key in keys if key not in metadata]
  except (json.JSONDecodeError, TypeError) as e:
    raise ValueError(f'{path} is not JSON: {e}') from e
  if missing or not isinstance(metadata, dict):
    raise ValueError(f'{path} is of something else: it lacks {missing}.')
  return metadata


def _json(metadata: Metadata) -> str:
  return json.dumps(metadata, indent=2) + '\n'
