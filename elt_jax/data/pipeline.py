"""Batches for training: shuffle, cut, repeat, augment, slice, batch.

The order is what makes a run independent of the number of hosts. Shuffling
and augmentation come before the slice of this host, so each example keeps its
place and its randomness; each epoch is cut, after its shuffle, to a multiple
of the global batch, so that epochs end between batches. Batch k is then a
function of (seed, k), and the position to resume from is the step.
"""

import collections
from collections.abc import Iterator
import itertools
from typing import Any

import grain
import jax
from jax.sharding import NamedSharding
import numpy as np

from elt_jax.data import transforms

Batch = dict[str, jax.Array]
# Enough; without a number Grain counts past its own integers for batches of 1.
_EPOCHS = 2**32


def build_dataset(
  config: Any, source: Any, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset:
  """Random access to this host's part of every global batch.

  Args:
    config: experiment config.
    source: examples, with `__len__` and `__getitem__`.
    process_index: this host.
    process_count: hosts; must divide train.batch_size.

  Returns:
    A dataset without end whose element k is {'image': [b, ...], 'label': [b],
    'index': [b]} with b = batch_size / process_count; 'index' is the place of
    an example in the global batch, from which its noise is drawn. Latents have
    'image_std' besides.

  Raises:
    ValueError: if the batch does not divide, or is larger than the source.
  """
  batch_size = config.train.batch_size
  if batch_size % process_count:
    raise ValueError(
      f'train.batch_size = {batch_size} must be a multiple of the number of '
      f'hosts, {process_count}.'
    )
  if batch_size > len(source):
    raise ValueError(
      f'train.batch_size = {batch_size} is larger than the source, '
      f'{len(source)} examples.'
    )
  whole = len(source) // batch_size * batch_size
  view = getattr(source, 'view', None)  # Draws a window or a motion anew.
  examples = range(len(source)) if view else source
  dataset = grain.MapDataset.source(examples).seed(config.data.seed)
  # Cut after the shuffle: each epoch leaves out other examples.
  dataset = dataset.shuffle()[:whole].repeat(_EPOCHS)
  if view:
    dataset = dataset.random_map(view)
  for transform in transforms.training(config):
    dataset = dataset.random_map(transform)
  dataset = dataset.map_with_index(
    lambda i, example: example | {'index': np.int32(i % batch_size)}
  )
  dataset = dataset[process_index::process_count]
  return dataset.batch(batch_size // process_count)


def batches(
  dataset: grain.MapDataset,
  sharding: NamedSharding,
  start: int,
  num_threads: int = 1,
  ahead: int = 2,
) -> Iterator[Batch]:
  """Global device arrays from step `start` on, `ahead` batches in flight."""
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=4 * max(num_threads, 1)
  )
  iterator = iter(dataset.to_iter_dataset(options))
  grain.experimental.set_next_index(iterator, start)

  def put(batch: dict[str, np.ndarray]) -> Batch:
    return {
      name: jax.make_array_from_process_local_data(sharding, value)
      for name, value in batch.items()
    }

  on_device = map(put, iterator)
  queue = collections.deque(itertools.islice(on_device, ahead))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(on_device, 1))
