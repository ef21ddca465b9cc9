"""The Inception-v3 that FID is defined with, from its public weights.

The network of 2015-12-05 that TensorFlow's and OpenAI's FID run, in the weights
that mseitzer/pytorch-fid and torch-fidelity publish (..inception-2015-12-05-
6726825d.pth): average pooling counts no padding, Mixed_7c pools by the maximum,
and the last layer has 1,008 classes. Parameters keep the names of that file;
images are resized and scaled as TensorFlow's graph does it.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.evals import inception_network as network
from elt_jax.evals import resize, weights
from elt_jax.tokenizers.pretrained import digest_of, in_batches

Array = jax.Array
Params = dict[str, np.ndarray]

SIDE = 299


class Features(NamedTuple):
  """What the metrics take of n images, float32.

  Attributes:
    pool: [n, 2048], of FID, precision and recall.
    spatial: [n, 2023], of sFID: 7 channels at 17 x 17 places.
    probabilities: [n, 1008], of IS.
  """

  pool: Any
  spatial: Any
  probabilities: Any


def load(path: str | pathlib.Path) -> Params:
  """The arrays of a .pth, .safetensors or .npz file of these weights.

  Raises:
    ValueError: if the file is missing or unreadable, or an array is missing or
      of another shape.
  """
  arrays = weights.read(path, 'inception')
  return weights.fitting(arrays, network.shapes(), path, 'the Inception of FID')


class Inception:
  """The network on all devices; a function of uint8 images.

  Attributes:
    fingerprint: of the weights, 16 hexadecimal digits.
  """

  def __init__(self, params: Params):
    self.fingerprint = digest_of({}, params)
    self._params = jax.tree.map(jnp.asarray, network.folded(params))
    self._features = jax.jit(
      lambda params, images: Features(*network.apply(params, scaled(images)))
    )

  def __call__(self, images: np.ndarray, batch_size: int = 64) -> Features:
    """uint8 [n, h, w, 3] (1 channel is repeated) -> `Features`, numpy."""
    if images.dtype != np.uint8 or images.ndim != 4:
      raise ValueError(
        f'Inception takes uint8 [n, h, w, c], got {images.dtype} '
        f'{images.shape}.'
      )
    if images.shape[-1] == 1:
      images = np.broadcast_to(images, (*images.shape[:-1], 3))
    features = functools.partial(self._features, self._params)
    return in_batches(features, images, batch_size)


def scaled(images: Array) -> Array:
  """uint8 [n, h, w, 3] -> float32 [n, 299, 299, 3], what the network takes."""
  x = resize.bilinear(images.astype(jnp.float32), SIDE, 'TensorFlow 1')
  return (x - 128) / 128
