"""The C3D that the IS of clips is defined with, from its public weights.

Eight convolutions of 3 x 3 x 3, trained on Sports-1M and fine-tuned on UCF-101
(Tran et al., arXiv 1412.0767), as pfnet-research/tgan2 has it, whose numbers
TGAN, DVD-GAN, StyleGAN-V and MAGVIT report. Two files of its release v1.0, in
Chainer's format:

    conv3d_deepnetA_ucf.npz    conv1a/W, conv1a/b .. fc8/W, fc8/b
    mean2.npz                  mean [3, 16, 128, 171], blue, green, red

tgan2's model takes pixels in [-1, 1], times 128, resizes them to 112 x 112 with
corners on corners, and adds 128 - mean, cut from its pixel (8, 8) on: not from
the middle. (MAGVIT's takes bytes as they are, and not 256 / 255 of them.)
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.evals import resize, weights
from elt_jax.tokenizers.pretrained import digest_of, in_batches

Array = jax.Array
Params = dict[str, np.ndarray]

FRAMES, SIDE, CLASSES = 16, 112, 101
_MEAN = (3, FRAMES, 128, 171)
_CUT = slice(8, 8 + SIDE)
# (name, in, out, window of the pooling after it).
_CONVOLUTIONS = (
  ('conv1a', 3, 64, (1, 2, 2)),
  ('conv2a', 64, 128, (2, 2, 2)),
  ('conv3a', 128, 256, None),
  ('conv3b', 256, 256, (2, 2, 2)),
  ('conv4a', 256, 512, None),
  ('conv4b', 512, 512, (2, 2, 2)),
  ('conv5a', 512, 512, None),
  ('conv5b', 512, 512, (2, 2, 2)),
)
_LAYERS = (('fc6', 512 * 4 * 4, 4096), ('fc7', 4096, 4096), ('fc8', 4096, 101))


def shapes() -> list[tuple[str, tuple[int, ...]]]:
  """Every array's name and shape, as Chainer has it."""
  found = []
  for name, before, out, _ in _CONVOLUTIONS:
    found.append((f'{name}/W', (out, before, 3, 3, 3)))
    found.append((f'{name}/b', (out,)))
  for name, before, out in _LAYERS:
    found += [(f'{name}/W', (out, before)), (f'{name}/b', (out,))]
  return found


def load(path: str | pathlib.Path, mean: str | pathlib.Path) -> Params:
  """The arrays of both files, 'mean' among them.

  Raises:
    ValueError: if one is missing or unreadable, or an array is missing or of
      another shape.
  """
  found = weights.fitting(
    weights.read(path, 'c3d'), shapes(), path, 'the C3D of IS'
  )
  return found | weights.fitting(
    weights.read(mean, 'c3d_mean'),
    [('mean', _MEAN)],
    mean,
    "the mean of C3D's clips",
  )


class C3D:
  """The network on all devices; a function of uint8 clips.

  Attributes:
    fingerprint: of the weights, 16 hexadecimal digits.
  """

  def __init__(self, params: Params):
    self.fingerprint = digest_of({}, params)
    self._params = jax.tree.map(jnp.asarray, arranged(params))
    self._probabilities = jax.jit(
      lambda params, clips: apply(params, scaled(clips, params['mean']))
    )

  def __call__(self, clips: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """uint8 [n, 16, h, w, 3] -> float32 probabilities [n, 101].

    Raises:
      ValueError: on another type or shape.
    """
    if (
      clips.dtype != np.uint8
      or clips.ndim != 5
      or (clips.shape[1], clips.shape[-1]) != (FRAMES, 3)
    ):
      raise ValueError(
        f'C3D takes uint8 [n, {FRAMES}, h, w, 3], got {clips.dtype} '
        f'{clips.shape}.'
      )
    probabilities = functools.partial(self._probabilities, self._params)
    return in_batches(probabilities, clips, batch_size)


def scaled(clips: Array, mean: Array) -> Array:
  """uint8 [n, 16, h, w, 3] -> float32 [n, 16, 112, 112, 3], what it takes.

  Args:
    clips: red, green, blue.
    mean: `arranged`.
  """
  x = resize.bilinear(clips[..., ::-1].astype(jnp.float32), SIDE, 'corners')
  return x * (256 / 255) - mean


# In full float32 on every device: rounded products move IS.
@jax.default_matmul_precision('highest')
def apply(params: dict[str, Any], x: Array) -> Array:
  """Probabilities [n, 101] of clips `scaled`, by `arranged` parameters."""
  for name, _, _, window in _CONVOLUTIONS:
    x = jax.lax.conv_general_dilated(
      x,
      params[f'{name}/W'],
      (1, 1, 1),
      'SAME',
      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    )
    x = jax.nn.relu(x + params[f'{name}/b'])
    if window:
      # Seven places to four, as Chainer's pooling covers all of them.
      window = (1, *window, 1)
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, window, window, 'SAME'
      )
  x = x.transpose(0, 4, 1, 2, 3).reshape(len(x), -1)
  for name, _, _ in _LAYERS:
    x = x @ params[f'{name}/W'] + params[f'{name}/b']
    if name != 'fc8':
      x = jax.nn.relu(x)
  return jax.nn.softmax(x)


def arranged(params: Params) -> Params:
  """Kernels [t, h, w, in, out] and [in, out], the mean [16, 112, 112, 3]."""
  order = {5: (2, 3, 4, 1, 0), 2: (1, 0), 1: (0,)}
  found = {
    name: value.transpose(order[value.ndim])
    for name, value in params.items()
    if name != 'mean'
  }
  found['mean'] = params['mean'][:, :, _CUT, _CUT].transpose(1, 2, 3, 0)
  return found
