"""Tokens and labels of a whole data set, in ArrayRecord shards.

    DIR/tokenizer/{config.json,weights.npz}    what made the tokens
    DIR/train-00000.array_record ...           a record: int32 label, tokens,
                                               conditions of the tasks
    DIR/metadata.json                          written last

A shard is written under another name and renamed, and metadata.json appears
when all shards are there: a killed run leaves a cache that is refused, and
that the same command completes.

Conditions are the tokens that a task gives, as 'predict:8' the first 8 frames,
and -1 elsewhere: what a masked model trained with `objective.commit` goes by.
"""

from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
import grain
import numpy as np

from elt_jax import files
from elt_jax.tokenizers import pretrained

FORMAT = 1
_RECORD = np.dtype('<i4')
_KEYS = (
  'format',
  'tokenizer',
  'source',
  'grid',
  'codebook_size',
  'num_classes',
  'class_names',
  'examples',
  'examples_per_shard',
)


def describe(
  tokenizer: pretrained.Tokenizer,
  class_names: list[str],
  counts: dict[str, int],
  per_shard: int,
  tasks: Sequence[str] = (),
) -> dict[str, Any]:
  """The metadata of a cache; equal metadata mean equal caches.

  Args:
    tokenizer: what makes the tokens.
    class_names: of the labels 0, 1, ...
    counts: split -> examples.
    per_shard: examples of a shard, but for the last of a split.
    tasks: whose conditions it has, in order; of clips.
  """
  d = tokenizer.config.data
  of_clips = {}
  if d.num_frames > 1:
    names = ('frame_stride', 'windows', 'ucf_split', 'skip_unreadable')
    of_clips = {name: d[name] for name in names} | {'tasks': list(tasks)}
  return of_clips | {
    'format': FORMAT,
    'tokenizer': tokenizer.fingerprint,
    'source': d.source,
    'grid': list(tokenizer.grid),
    'codebook_size': tokenizer.config.tokenizer.codebook_size,
    'num_classes': len(class_names),
    'class_names': class_names,
    'examples': counts,
    'examples_per_shard': per_shard,
  }


def shards(
  directory: pathlib.Path, metadata: dict[str, Any], split: str
) -> list[pathlib.Path]:
  """The files of a split, in order."""
  count = -(-metadata['examples'][split] // metadata['examples_per_shard'])
  return [directory / f'{split}-{n:05d}.array_record' for n in range(count)]


def begin(directory: pathlib.Path, metadata: dict[str, Any]) -> bool:
  """Claims `directory` for a cache; False if it is there already, whole.

  Raises:
    ValueError: if the directory holds another cache, whole or begun, or shards
      of which nothing is known.
  """
  for name in ('metadata.json', 'unfinished.json'):
    if not (directory / name).exists():
      continue
    there = _read_json(directory / name)
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


def write_shard(
  path: pathlib.Path,
  labels: np.ndarray,
  tokens: np.ndarray,
  *conditions: np.ndarray,
) -> None:
  """Writes int32 labels [n] and tokens [n, *grid], whole or not at all.

  `conditions` are int32 [n, *grid], of each task.
  """
  n = len(tokens)
  records = np.concatenate(
    [part.reshape(n, -1) for part in (labels, tokens, *conditions)], 1
  ).astype(_RECORD)
  with files.replacing(path) as temporary:
    # Groups of one record: training reads them in random order.
    writer = ArrayRecordWriter(str(temporary), 'group_size:1')
    for record in records:
      writer.write(record.tobytes())
    writer.close()


def finish(directory: pathlib.Path, metadata: dict[str, Any]) -> None:
  """Declares the cache whole."""
  files.write_text(directory / 'metadata.json', _json(metadata))
  (directory / 'unfinished.json').unlink()


class TokenSource:
  """A split of a cache: {'tokens': int32 [*grid], 'label': int32}.

  With conditions, 'conditions' int32 [tasks, *grid] besides.

  Attributes:
    metadata: see `describe`.
    tokenizer: what made the tokens.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    split: str,
    with_conditions: bool = False,
  ):
    """Opens a whole cache.

    Raises:
      ValueError: if the cache is missing, unfinished, of another format, lacks
        a shard, its tokenizer is not the one that made it, or it was made for
        no task and conditions are asked for.
    """
    directory = pathlib.Path(directory)
    if not (directory / 'metadata.json').is_file():
      state = (
        'is unfinished; run the same elt_jax.tokenize command again'
        if (directory / 'unfinished.json').exists()
        else 'is not there; make it with python -m elt_jax.tokenize'
      )
      raise ValueError(f'The token cache {directory} {state}.')
    self.metadata = _read_json(directory / 'metadata.json')
    if self.metadata['format'] != FORMAT:
      raise ValueError(
        f'{directory} has format {self.metadata["format"]}, this code '
        f'reads {FORMAT}.'
      )
    self.tokenizer = pretrained.load(directory / 'tokenizer')
    if self.tokenizer.fingerprint != self.metadata['tokenizer']:
      raise ValueError(
        f'{directory} was made by tokenizer {self.metadata["tokenizer"]}, but '
        f'{directory / "tokenizer"} holds {self.tokenizer.fingerprint}.'
      )
    self._tasks = len(self.metadata.get('tasks', ()))
    if with_conditions and not self._tasks:
      raise ValueError(
        f'{directory} has no conditions: objective.commit needs a cache made '
        'with --tasks.'
      )
    self._with_conditions = with_conditions
    paths = shards(directory, self.metadata, split)
    if missing := [path.name for path in paths if not path.is_file()]:
      raise ValueError(f'{directory} lacks shards: {missing[:5]}.')
    try:
      self._records = grain.sources.ArrayRecordDataSource(
        [str(path) for path in paths]
      )
    except RuntimeError as e:  # What ArrayRecord raises on a file cut short.
      raise ValueError(
        f'A shard of {directory} ({split}) is damaged: {e or "no reason given"}'
      ) from e
    if len(self._records) != self.metadata['examples'][split]:
      raise ValueError(
        f'{directory} has {len(self._records)} examples in {split}, its '
        f'metadata say {self.metadata["examples"][split]}.'
      )
    self._directory = directory

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises ValueError on a record of another length or an id out of range."""
    m = self.metadata
    record = np.frombuffer(self._records[index], _RECORD)
    rows, size = 1 + self._tasks, math.prod(m['grid'])
    if len(record) != 1 + rows * size:
      raise ValueError(
        f'{self._directory}: example {index} has {len(record)} numbers, '
        f'expected a label and {m["grid"]} tokens, {rows} times.'
      )
    label, given = record[0], record[1:].reshape(rows, *m['grid'])
    tokens, conditions = given[0], given[1:]
    if (
      tokens.min() < 0
      or given.min() < -1
      or given.max() >= m['codebook_size']
      or not 0 <= label < m['num_classes']
    ):
      raise ValueError(
        f'{self._directory}: example {index} has tokens in '
        f'{given.min()}..{given.max()} and label {label}; expected tokens '
        f'below {m["codebook_size"]} and a label below {m["num_classes"]}.'
      )
    example = {'tokens': tokens, 'label': label}
    return example | (
      {'conditions': conditions} if self._with_conditions else {}
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """Raises ValueError unless the file is JSON with the keys of `describe`."""
  try:
    metadata = json.loads(path.read_text())
    missing = [key for key in _KEYS if key not in metadata]
  except (json.JSONDecodeError, TypeError) as e:
    raise ValueError(f'{path} is not JSON: {e}') from e
  if missing:
    raise ValueError(f'{path} is not of a token cache: it lacks {missing}.')
  return metadata


def _json(metadata: dict[str, Any]) -> str:
  return json.dumps(metadata, indent=2) + '\n'
