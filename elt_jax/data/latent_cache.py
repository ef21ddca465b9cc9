"""Latents and labels of a whole data set of images, in ArrayRecord shards.

    DIR/tokenizer/{config.json,vae/}    what made the latents
    DIR/train-00000.array_record ...    a record: int32 label, float16 mean and
                                        standard deviation of the latents
    DIR/metadata.json                   see `data.shards`

A model sees a sample of that Gaussian, another at every step. float16 is off by
a two-thousandth of a mean at most, far less than the noise of any step.
"""

import pathlib
from typing import Any

import numpy as np

from elt_jax.data import shards
from elt_jax.tokenizers import autoencoder

FORMAT = 1
_KEYS = (
  'format',
  'autoencoder',
  'source',
  'shape',
  'num_classes',
  'class_names',
  'examples',
  'examples_per_shard',
)


def describe(
  encoder: autoencoder.Autoencoder,
  class_names: list[str],
  counts: dict[str, int],
  per_shard: int,
) -> dict[str, Any]:
  """The metadata of a cache; for the arguments see `token_cache.describe`."""
  d = encoder.config.data
  return {
    'format': FORMAT,
    'autoencoder': encoder.fingerprint,
    'source': d.source,
    'image_size': d.image_size,
    'shape': list(encoder.shape),
    'num_classes': len(class_names),
    'class_names': class_names,
    'examples': counts,
    'examples_per_shard': per_shard,
  }


def write_shard(
  path: pathlib.Path, labels: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> None:
  """Writes int32 labels [n], means and standard deviations [n, *shape]."""
  records = np.empty(len(labels), _record(means.shape[1:]))
  records['label'], records['mean'], records['std'] = labels, means, stds
  shards.write(path, (record.tobytes() for record in records))


def _record(shape: tuple[int, ...]) -> np.dtype:
  return np.dtype(
    [('label', '<i4'), ('mean', '<f2', shape), ('std', '<f2', shape)]
  )


class LatentSource:
  """A split of a cache: {'image', 'image_std': float16 [*shape], 'label'}.

  Attributes:
    metadata: see `describe`.
    tokenizer: what made the latents.
    class_names: of the labels.
  """

  def __init__(self, directory: str | pathlib.Path, split: str):
    """Opens a whole cache.

    Raises:
      ValueError: if the cache is missing, unfinished, of another format, lacks
        a shard, or its autoencoder is not the one that made it.
    """
    directory = pathlib.Path(directory)
    self.metadata = shards.read_metadata(
      directory, 'latent cache', FORMAT, _KEYS
    )
    self.class_names = self.metadata['class_names']
    self.tokenizer = autoencoder.load(directory / 'tokenizer')
    if self.tokenizer.fingerprint != self.metadata['autoencoder']:
      raise ValueError(
        f'{directory} was made by autoencoder {self.metadata["autoencoder"]}, '
        f'but {directory / "tokenizer"} holds {self.tokenizer.fingerprint}.'
      )
    self._records = shards.open_split(directory, self.metadata, split)
    self._record = _record(tuple(self.metadata['shape']))
    self._directory = directory

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises ValueError on another length, or a label out of range."""
    stored, m = self._records[index], self.metadata
    if len(stored) != self._record.itemsize:
      raise ValueError(
        f'{self._directory}: example {index} has {len(stored)} bytes, expected '
        f'{self._record.itemsize}.'
      )
    record = np.frombuffer(stored, self._record)[0]
    if not 0 <= record['label'] < m['num_classes']:
      raise ValueError(
        f'{self._directory}: example {index} has label {record["label"]}; '
        f'expected one below {m["num_classes"]}.'
      )
    return {
      'image': record['mean'],
      'image_std': record['std'],
      'label': record['label'],
    }
