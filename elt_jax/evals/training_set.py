"""Examples of a training set in parts, as networks of metrics see them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from tqdm import tqdm

from elt_jax import viz

Example = dict[str, Any]


def in_parts(
  read: Callable[[int], Example],
  places: Sequence[int],
  size: int,
  num_threads: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (uint8 [n, (f,) h, w, 3], int32 [n]), images or clips and labels.

  Args:
    read: place -> example, called by several threads.
    places: of the examples, in this order.
    size: most of a part.
    num_threads: that read.
  """
  with (
    futures.ThreadPoolExecutor(num_threads) as pool,
    tqdm(total=len(places), desc='reference') as progress,
  ):
    for start in range(0, len(places), size):
      part = list(pool.map(read, places[start : start + size]))
      labels = np.array([example['label'] for example in part], np.int32)
      yield _rgb([example['image'] for example in part]), labels
      progress.update(len(part))


def _rgb(images: list[np.ndarray]) -> np.ndarray:
  """[..., 1 or 3] each, bytes or in [-1, 1] -> uint8 [n, ..., 3]."""
  stacked = np.stack(images)
  if stacked.dtype != np.uint8:
    stacked = viz.to_uint8(stacked)
  return np.broadcast_to(stacked, (*stacked.shape[:-1], 3))
