"""Directories of ArrayRecord shards: whole, or refused and gone on with.

    DIR/train-00000.array_record ...    records of a split
    DIR/metadata.json                   written last

A shard is written under another name and renamed, and metadata.json appears
when all shards are there: a killed writer leaves a directory that is refused,
and that the same command completes. Metadata have 'format', 'examples', of each
split, and 'examples_per_shard'; equal metadata mean equal directories.
"""

from collections.abc import Iterable, Sequence
import json
import pathlib
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import grain

from elt_jax import files

Metadata = dict[str, Any]


def paths(
  directory: pathlib.Path, metadata: Metadata, split: str
) -> list[pathlib.Path]:
  """The files of a split, in order."""
  count = -(-metadata['examples'][split] // metadata['examples_per_shard'])
  return [directory / f'{split}-{n:05d}.array_record' for n in range(count)]


def begin(directory: pathlib.Path, metadata: Metadata) -> bool:
  """Claims `directory`; False if it is there already, whole.

  Raises:
    ValueError: if the directory is another one, whole or begun, or has shards
      of which nothing is known.
  """
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
    return name != 'metadata.json'
  if any(directory.glob('*.array_record')):
    raise ValueError(
      f'{directory} has shards and no metadata.json to say whose they are. Use '
      'another --out, or delete the directory.'
    )
  files.write_text(directory / 'unfinished.json', _json(metadata))
  return True


def write(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a shard, whole or not at all."""
  with files.replacing(path) as temporary:
    # Groups of one record: training reads them in random order.
    writer = ArrayRecordWriter(str(temporary), 'group_size:1')
    for record in records:
      writer.write(record)
    writer.close()


def finish(directory: pathlib.Path, metadata: Metadata) -> None:
  """Declares the directory whole."""
  files.write_text(directory / 'metadata.json', _json(metadata))
  (directory / 'unfinished.json').unlink()


def read_metadata(
  directory: pathlib.Path, kind: str, version: int, keys: Sequence[str]
) -> Metadata:
  """The metadata of a whole directory.

  Args:
    directory: of the shards.
    kind: what they are, for messages, as in 'token cache'.
    version: 'format' that is read.
    keys: that must be there.

  Raises:
    ValueError: if the directory is missing, unfinished, or of another kind or
      format.
  """
  path = directory / 'metadata.json'
  if not path.is_file():
    state = (
      'is unfinished; run the same elt_jax.tokenize command again'
      if (directory / 'unfinished.json').exists()
      else 'is not there; make it with python -m elt_jax.tokenize'
    )
    raise ValueError(f'The {kind} {directory} {state}.')
  metadata = _read_json(path, keys)
  if metadata['format'] != version:
    raise ValueError(
      f'{directory} has format {metadata["format"]}, this code reads {version}.'
    )
  return metadata


def open_split(
  directory: pathlib.Path, metadata: Metadata, split: str
) -> grain.sources.ArrayRecordDataSource:
  """Random access to the records of a split.

  Raises:
    ValueError: if a shard is missing or damaged, or examples are.
  """
  found = paths(directory, metadata, split)
  if missing := [path.name for path in found if not path.is_file()]:
    raise ValueError(f'{directory} lacks shards: {missing[:5]}.')
  try:
    records = grain.sources.ArrayRecordDataSource([str(p) for p in found])
  except RuntimeError as e:  # What ArrayRecord raises on a file cut short.
    raise ValueError(
      f'A shard of {directory} ({split}) is damaged: {e or "no reason given"}'
    ) from e
  if len(records) != metadata['examples'][split]:
    raise ValueError(
      f'{directory} has {len(records)} examples in {split}, its metadata say '
      f'{metadata["examples"][split]}.'
    )
  return records


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
