"""Tokens and labels of a whole data set, in ArrayRecord shards.

    DIR/tokenizer/{config.json,weights.npz}    what made the tokens
    DIR/train-00000.array_record ...           a record: int32 label, tokens,
                                               conditions of the tasks
    DIR/metadata.json                          see `data.shards`

Conditions are the tokens that a task gives, as 'predict:8' the first 8 frames,
and -1 elsewhere: what a masked model trained with `objective.commit` goes by.
"""

from collections.abc import Sequence
import math
import pathlib
from typing import Any

import numpy as np

from elt_jax.data import shards
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
  """The metadata of a cache.

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
  shards.write(path, (record.tobytes() for record in records))


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
    self.metadata = shards.read_metadata(
      directory, 'token cache', FORMAT, _KEYS
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
    self._records = shards.open_split(directory, self.metadata, split)
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
