"""A perceptual distance over VGG-16 features, with weights the user supplies.

The distance of LPIPS (Zhang et al., arXiv 1801.03924) without its learned
per-channel weights: features of five layers, scaled to unit length at every
position, compared by squared error. The file holds torchvision's VGG-16 under
torchvision's names, as .safetensors or .npz; nothing is downloaded.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elt_jax import files

Array = jax.Array
# (index in torchvision's `features`, output channels); a level ends with the
# layer that is compared, and a 2 x 2 max pool lies between levels.
LEVELS = (
  ((0, 64), (2, 64)),
  ((5, 128), (7, 128)),
  ((10, 256), (12, 256), (14, 256)),
  ((17, 512), (19, 512), (21, 512)),
  ((24, 512), (26, 512), (28, 512)),
)
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def load_vgg16(path: str) -> dict[str, np.ndarray]:
  """The convolutions of a VGG-16 file, kernels as [3, 3, in, out].

  Raises:
    ValueError: if the file is missing or unreadable, or an array is missing or
      has another shape.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f'tokenizer.perceptual_weights: there is no file {path}.')
  try:
    if path.endswith('.safetensors'):
      arrays = files.read_safetensors(path)
    else:
      arrays = files.read_npz(path)
  except ValueError as e:
    raise ValueError(f'{path} is not a .safetensors or .npz file: {e}') from e
  found, channels = {}, 3
  for index, features in (layer for level in LEVELS for layer in level):
    for name, shape in (
      (f'features.{index}.weight', (features, channels, 3, 3)),
      (f'features.{index}.bias', (features,)),
    ):
      if name not in arrays or arrays[name].shape != shape:
        got = arrays[name].shape if name in arrays else 'nothing'
        raise ValueError(
          f"{path} is not torchvision's VGG-16: {name} must be {shape}, got "
          f'{got}.'
        )
      value = np.asarray(arrays[name], np.float32)
      found[name] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    channels = features
  return found


def features(weights: dict[str, Any], x: Array) -> list[Array]:
  """[n, h, w, 3] in [0, 1] -> five feature maps, of unit length each."""
  x = (x - _MEAN) / _STD
  found = []
  for level in LEVELS:
    if found:
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
      )
    for index, _ in level:
      x = jax.lax.conv_general_dilated(
        x,
        weights[f'features.{index}.weight'],
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      x = jax.nn.relu(x + weights[f'features.{index}.bias'])
    # Finite in value and gradient where all features are zero.
    norm = jnp.sum(jnp.square(x), -1, keepdims=True)
    found.append(x * jax.lax.rsqrt(norm + 1e-12))
  return found


def distance(weights: dict[str, Any], x: Array, y: Array) -> Array:
  """Mean over [b, (f,) h, w, c] pairs in [0, 1], c 1 or 3: a scalar.

  Frames of clips are compared one by one. Sides must be at least 16.
  """
  images = [
    jnp.broadcast_to(z.reshape(-1, *z.shape[-3:]), (*_flat(z), 3))
    for z in (x, y)
  ]
  pairs = zip(*(features(weights, z) for z in images), strict=True)
  return sum(jnp.mean(jnp.sum((a - b) ** 2, -1)) for a, b in pairs)


def _flat(z: Array) -> tuple[int, ...]:
  """(images, h, w) of a batch of images or clips."""
  return (int(np.prod(z.shape[:-3])), *z.shape[-3:-1])
