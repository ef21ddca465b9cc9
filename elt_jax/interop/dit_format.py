"""The state dicts of DiT and SiT as our config and parameters.

The names are those of facebookresearch/DiT, which SiT kept; no config comes
with a file, and sizes are read off the shapes. An unlooped model of N layers
has the same network: adaLN-zero, fixed sine and cosine positions, a tanh GELU.
"""

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

from flax import traverse_util
import ml_collections
import numpy as np

from configs.base import get_base
from elt_jax import files
from elt_jax.models import build_model, layers
from elt_jax.tokenizers.pretrained import check_shapes
from elt_jax.validation import validate

KINDS = ('dit', 'sit')
# Of S, B, L and XL, by width: heads leave no trace in the shapes.
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
_WAVES = 256  # Of the embedded time.

# theirs -> ours, weight and bias each, outside the layers and within one.
_OUTSIDE = {
  'x_embedder.proj': 'embed/patch',
  't_embedder.mlp.0': 'embed/t_in',
  't_embedder.mlp.2': 'embed/t_out',
  'final_layer.adaLN_modulation.1': 'head/adaln',
  'final_layer.linear': 'head/out',
}
_LAYER = {
  'attn.qkv': 'attention/qkv',
  'attn.proj': 'attention/out',
  'mlp.fc1': 'mlp/in',
  'mlp.fc2': 'mlp/out',
  'adaLN_modulation.1': 'adaln',
}
_PROCESS = {
  'dit': {'schedule': 'linear_beta', 'prediction': 'eps', 'weighting': 'eps'},
  'sit': {
    'schedule': 'interpolant',
    'prediction': 'velocity',
    'weighting': 'velocity',
    # u from 6e-6 to 1 - 6e-6, for SiT's 0 to 1.
    'logsnr_min': -24.0,
    'logsnr_max': 24.0,
  },
}


def convert(
  path: str,
  tensors: Mapping[str, np.ndarray],
  kind: str,
  num_heads: int | None = None,
) -> tuple[ml_collections.ConfigDict, Any]:
  """(config, parameters) of a state dict.

  Args:
    path: of the file, for errors.
    tensors: arrays by the names of facebookresearch/DiT.
    kind: of `KINDS`.
    num_heads: None is that of the published model of the same width.

  Raises:
    ValueError: if an array is missing, extra or of another shape or type, the
      positions are not DiT's, or the number of heads is not known.
  """
  config = _config(path, tensors, kind, num_heads)
  wanted = dict(_shapes(config, tensors))
  files.check_shapes(path, tensors, wanted, f'a {kind} of its size has')
  for name, tensor in tensors.items():
    if tensor.dtype.kind != 'f':
      raise ValueError(f'{path}: {name} is no array of floats.')
  side, width = config.data.image_size, config.model.width
  grid = side // config.model.patch_size
  table = layers.position_table((1, grid, grid), width)
  # Kept by an average of its own in training, which rounds it.
  if not np.allclose(tensors['pos_embed'][0], table, atol=0.01):
    raise ValueError(
      f"{path}: pos_embed are not the sines and cosines of DiT's positions."
    )
  params = traverse_util.unflatten_dict(_arrays(config, tensors, kind), sep='/')
  check_shapes(str(path), params, build_model(config))
  return config, params


def _config(
  path: str,
  tensors: Mapping[str, np.ndarray],
  kind: str,
  num_heads: int | None,
) -> ml_collections.ConfigDict:
  """A config whose sizes are those of the arrays."""

  def shape(name: str, ndim: int) -> tuple[int, ...]:
    if name in tensors and tensors[name].ndim == ndim:
      return tensors[name].shape
    found = tensors[name].shape if name in tensors else 'missing'
    raise ValueError(
      f'{path} is no state dict of DiT or SiT: {name} is {found}, and should '
      f'have {ndim} axes. It has {sorted(tensors)[:3]}.'
    )

  width, channels, patch, _ = shape('x_embedder.proj.weight', 4)
  _, tokens, _ = shape('pos_embed', 3)
  rows, _ = shape('y_embedder.embedding_table.weight', 2)
  hidden, _ = shape('blocks.0.mlp.fc1.weight', 2)
  blocks = (re.match(r'blocks\.(\d+)\.', name) for name in tensors)
  if num_heads is None and width not in _HEADS:
    raise ValueError(
      f'{path} has width {width}, and is none of the published models, whose '
      f'widths are {sorted(_HEADS)}: give --num_heads.'
    )
  c = get_base()
  c.model.update(
    {
      'width': width,
      'num_heads': num_heads or _HEADS[width],
      'mlp_ratio': hidden / width,
      'num_layers': len({block[1] for block in blocks if block}),
      'max_loops': 1,
      'patch_size': patch,
      'scan_layers': True,
      'time_scale': {'dit': 1000.0, 'sit': 1.0}[kind],
    }
  )
  c.objective.update({'exits': 'none'} | _PROCESS[kind])
  c.data.update(
    {
      'source': 'latents:',
      'image_size': math.isqrt(tokens) * patch,
      'num_channels': channels,
      'num_classes': rows - 1,  # The last is the null class.
    }
  )
  c.sample.update(
    {
      'method': {'dit': 'ddpm', 'sit': 'ddim'}[kind],
      'num_steps': 250,
      'guidance': 1.375,
      'clip': False,
      'batch_size': 32,
    }
  )
  return validate(c)


def _shapes(
  config: ml_collections.ConfigDict, tensors: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every tensor's name and shape, as PyTorch has it."""
  m, d = config.model, config.data
  width, patch = m.width, m.patch_size
  hidden = int(width * m.mlp_ratio)
  out = patch**2 * d.num_channels
  # A learned variance, or what was left of one, comes after the prediction.
  rows = tensors.get('final_layer.linear.bias', np.empty(out)).shape
  out = 2 * out if rows == (2 * out,) else out
  maps = {
    't_embedder.mlp.0': (width, _WAVES),
    't_embedder.mlp.2': (width, width),
    'final_layer.adaLN_modulation.1': (2 * width, width),
    'final_layer.linear': (out, width),
    'x_embedder.proj': (width, d.num_channels, patch, patch),
  }
  of_layer = {
    'attn.qkv': (3 * width, width),
    'attn.proj': (width, width),
    'mlp.fc1': (hidden, width),
    'mlp.fc2': (width, hidden),
    'adaLN_modulation.1': (6 * width, width),
  }
  for n in range(m.num_layers):
    maps |= {f'blocks.{n}.{name}': shape for name, shape in of_layer.items()}
  for name, shape in maps.items():
    yield f'{name}.weight', shape
    yield f'{name}.bias', shape[:1]
  yield 'pos_embed', (1, (d.image_size // patch) ** 2, width)
  yield 'y_embedder.embedding_table.weight', (d.num_classes + 1, width)


def _arrays(
  config: ml_collections.ConfigDict,
  tensors: Mapping[str, np.ndarray],
  kind: str,
) -> dict[str, np.ndarray]:
  """Our parameters by path, float32."""
  m, channels = config.model, config.data.num_channels
  heads = (m.num_heads, m.width // m.num_heads)
  # The output axes of a kernel, where they are more than one.
  split = {
    'attention/qkv': (3, *heads),
    'adaln': (6, m.width),
    'head/adaln': (2, m.width),
  }

  def pair(theirs: str, ours: str) -> tuple[np.ndarray, np.ndarray]:
    """(kernel, bias) of one map, inputs first."""
    kernel = tensors[f'{theirs}.weight'].astype(np.float32)
    bias = tensors[f'{theirs}.bias'].astype(np.float32)
    if ours == 'embed/patch':  # [d, c, p, p], tokens here are (p, p, c).
      kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, m.width)
    else:
      kernel = kernel.T
    if ours == 'attention/out':
      return kernel.reshape(*heads, m.width), bias
    if ours == 'head/out':  # (p, p, c) too, the prediction first in c.
      kept = lambda x: x.reshape(*x.shape[:-1], m.patch_size**2, -1)
      kernel, bias = (kept(x)[..., :channels] for x in (kernel, bias))
      # Time runs the other way there: their velocity is x - eps.
      sign = np.float32(-1 if kind == 'sit' else 1)
      return sign * kernel.reshape(m.width, -1), sign * bias.reshape(-1)
    shape = split.get(ours, bias.shape)
    return kernel.reshape(-1, *shape), bias.reshape(shape)

  found = {
    'embed/classes': tensors['y_embedder.embedding_table.weight'].astype(
      np.float32
    )
  }
  for theirs, ours in _OUTSIDE.items():
    found[f'{ours}/kernel'], found[f'{ours}/bias'] = pair(theirs, ours)
  for theirs, ours in _LAYER.items():
    pairs = [pair(f'blocks.{n}.{theirs}', ours) for n in range(m.num_layers)]
    kernels, biases = zip(*pairs, strict=True)
    found[f'layers/{ours}/kernel'] = np.stack(kernels)
    found[f'layers/{ours}/bias'] = np.stack(biases)
  return found
