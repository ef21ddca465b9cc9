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

from elt_jax import files, torch_files
from elt_jax.evals import inception_network as network
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
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'--inception: there is no file {path}.')
  if path.suffix == '.safetensors':
    arrays = files.read_safetensors(path)
  elif path.suffix == '.npz':
    arrays = files.read_npz(path)
  else:
    arrays = torch_files.read_state_dict(path)
  found = {}
  for name, shape in network.shapes():
    if name not in arrays or arrays[name].shape != shape:
      got = arrays[name].shape if name in arrays else 'missing'
      raise ValueError(
        f'{path} is not the Inception of FID: {name} is {got}, expected '
        f'{shape}.'
      )
    found[name] = np.asarray(arrays[name], np.float32)
  return found


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
  return (resize(images.astype(jnp.float32)) - 128) / 128


def resize(images: Array) -> Array:
  """[n, h, w, c] -> [n, 299, 299, c], bilinear, as TensorFlow 1 does it.

  Its pixel i lies at i * size / 299 of the image: no half pixels, no filter.
  """
  for axis in (1, 2):
    size = images.shape[axis]
    at = np.arange(SIDE) * (size / SIDE)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, size - 1)
    part = (at - low).astype(np.float32)
    part = part.reshape(-1, *(1,) * (3 - axis))
    take = functools.partial(jnp.take, images, axis=axis)
    images = take(low) * (1 - part) + take(high) * part
  return images
