"""Batches for training: shuffle, cut, repeat, augment, slice, batch.

The order is what makes a run independent of the number of hosts. Shuffling
and augmentation come before a host takes the examples of its devices, so each
keeps its place in the batch and its randomness; each epoch is cut, after its
shuffle, to a multiple of the global batch, so that epochs end between batches.
Batch k is then a function of (seed, k), and the position to resume from is the
step.
"""

import collections
from collections.abc import Iterator, Sequence
import functools
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


def local_places(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """Places in the global batch, in order, of what this host's devices hold.

  Hosts whose devices differ in the `tensor` axis alone hold the same.
  """
  shards = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique([np.arange(batch_size)[index] for index in shards])


def build_dataset(
  config: Any, source: Any, places: Sequence[int] | None = None
) -> grain.MapDataset:
  """Random access to this host's part of every global batch.

  Args:
    config: experiment config.
    source: examples, with `__len__` and `__getitem__`.
    places: of this host, `local_places`; None is the whole batch.

  Returns:
    A dataset without end whose element k is {'image': [b, ...], 'label': [b],
    'index': [b]} with b the number of places; 'index' is the place of an
    example in the global batch, from which its noise is drawn. Latents have
    'image_std' besides.

  Raises:
    ValueError: if the batch is larger than the source.
  """
  batch_size = config.train.batch_size
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
  places = range(batch_size) if places is None else places
  part = grain.MapDataset.source(_Part(dataset, batch_size, places))
  return part.batch(len(places))


class _Part:
  """Of every `batch_size` examples those at `places`."""

  def __init__(
    self, examples: grain.MapDataset, batch_size: int, places: Sequence[int]
  ):
    self._examples, self._batch_size = examples, batch_size
    self._places = [int(place) for place in places]

  def __len__(self) -> int:
    return len(self._examples) // self._batch_size * len(self._places)

  def __getitem__(self, i: int) -> Any:
    batch, place = divmod(i, len(self._places))
    return self._examples[batch * self._batch_size + self._places[place]]


def batches(
  dataset: grain.MapDataset,
  sharding: NamedSharding,
  batch_size: int,
  start: int,
  num_threads: int = 1,
  ahead: int = 2,
) -> Iterator[Batch]:
  """Global device arrays from step `start` on, `ahead` batches in flight.

  Args:
    dataset: of `build_dataset`, with the `local_places` of `sharding`.
    sharding: of a batch.
    batch_size: of the global batch.
    start: the first step.
    num_threads: that read examples.
    ahead: batches.
  """
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=4 * max(num_threads, 1)
  )
  iterator = iter(dataset.to_iter_dataset(options))
  grain.experimental.set_next_index(iterator, start)

  places = local_places(sharding, batch_size)

  def shard(values: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    begin, end, _ = index[0].indices(batch_size)
    return values[slice(*np.searchsorted(places, (begin, end)))]

  def put(batch: dict[str, np.ndarray]) -> Batch:
    return {
      name: jax.make_array_from_callback(
        (batch_size, *values.shape[1:]),
        sharding,
        functools.partial(shard, values),
      )
      for name, values in batch.items()
    }

  on_device = map(put, iterator)
  queue = collections.deque(itertools.islice(on_device, ahead))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(on_device, 1))
