"""Bilinear resizing as the libraries did it that metrics are defined with."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
# Where pixel i of `side` lies among `size`; no filter, so that pixels between
# are lost where a picture shrinks.
KINDS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
  'TensorFlow 1': lambda i, size, side: i * (size / side),
  'half pixels': lambda i, size, side: (i + 0.5) * (size / side) - 0.5,
  'corners': lambda i, size, side: i * ((size - 1) / max(side - 1, 1)),
}


def bilinear(x: Array, side: int, kind: str) -> Array:
  """float [..., h, w, c] -> [..., side, side, c].

  Args:
    x: pictures.
    side: in pixels.
    kind: of `KINDS`. 'TensorFlow 1' is its resize_bilinear, with corners not
      aligned; 'half pixels' is torch's interpolate and TensorFlow 2;
      'corners' puts the outer pixels on each other, as Chainer's
      resize_images.
  """
  for axis in (x.ndim - 3, x.ndim - 2):
    size = x.shape[axis]
    at = np.clip(KINDS[kind](np.arange(side), size, side), 0, size - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, size - 1)
    part = (at - low).astype(np.float32)
    part = part.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    take = functools.partial(jnp.take, x, axis=axis)
    x = take(low) * (1 - part) + take(high) * part
  return x
