"""Examples of a training set in parts, as networks of metrics see them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from tqdm import tqdm

from elt_jax import viz

Example = dict[str, Any]


def in_parts(
  read: Callable[[int], Example], places: Sequence[int], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (uint8 [n, (f,) h, w, 3], int32 [n]), images or clips and labels.

  The next part is read while one is worked on.

  Args:
    read: place -> example, called by several threads.
    places: of the examples, in this order.
    size: most of a part.
  """
  parts = [places[i : i + size] for i in range(0, len(places), size)]
  with (
    futures.ThreadPoolExecutor() as pool,
    tqdm(total=len(places), desc='reference') as progress,
  ):
    ahead = pool.map(read, parts[0])
    for following in [*parts[1:], ()]:
      examples = list(ahead)
      ahead = pool.map(read, following)
      labels = np.array([example['label'] for example in examples], np.int32)
      yield _rgb([example['image'] for example in examples]), labels
      progress.update(len(examples))


def _rgb(images: list[np.ndarray]) -> np.ndarray:
  """[..., 1 or 3] each, bytes or in [-1, 1] -> uint8 [n, ..., 3]."""
  stacked = np.stack(images)
  if stacked.dtype != np.uint8:
    stacked = viz.to_uint8(stacked)
  return np.broadcast_to(stacked, (*stacked.shape[:-1], 3))
