"""The autoencoder of Stable Diffusion, from its public files.

A directory as diffusers writes it: config.json and
diffusion_pytorch_model.safetensors. Images of 256 x 256 become latents of
32 x 32 x 4, Gaussians of which diffusion models see a sample times 0.18215
(Rombach et al., arXiv 2112.10752; diffusers' AutoencoderKL).

The parameters keep the names of the file, as nested dicts: the functions below
read like its table of contents.
"""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax import files

Array = jax.Array
Params = dict[str, Any]

WEIGHTS = 'diffusion_pytorch_model.safetensors'
# The first releases called them so.
_OLD_NAMES = {
  'query': 'to_q',
  'key': 'to_k',
  'value': 'to_v',
  'proj_attn': 'to_out.0',
}
_REQUIRED = ('latent_channels', 'block_out_channels', 'layers_per_block')
# What this code computes; a file that says otherwise is refused.
_EXPECTED = {
  '_class_name': 'AutoencoderKL',
  'act_fn': 'silu',
  'in_channels': 3,
  'out_channels': 3,
  'shift_factor': None,
  'latents_mean': None,
  'mid_block_add_attention': True,
  'use_quant_conv': True,
  'use_post_quant_conv': True,
}


def load(directory: epath.PathLike) -> tuple[dict[str, Any], Params]:
  """The config and the float32 parameters of a diffusers directory.

  Kernels are [h, w, in, out], matrices [in, out].

  Raises:
    ValueError: if a file is missing or unreadable, the autoencoder is of
      another kind, or an array is missing, extra or of another shape.
  """
  directory = epath.Path(directory)
  config = _read_config(directory / 'config.json')
  path = directory / WEIGHTS
  if not path.is_file():
    raise ValueError(
      f'{directory} has no {WEIGHTS}: give the directory of an autoencoder as '
      'diffusers saves it, with safe serialization.'
    )
  tensors = files.read_safetensors(path)
  tensors = {_new_name(name): value for name, value in tensors.items()}
  wanted = dict(shapes(config))
  files.check_shapes(path, tensors, wanted, 'its config.json asks for')
  return config, from_torch(tensors)


def _read_config(path: epath.Path) -> dict[str, Any]:
  if not path.is_file():
    raise ValueError(f'There is no {path}.')
  try:
    config = json.loads(path.read_text())
    missing = [key for key in _REQUIRED if key not in config]
  except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as e:
    raise ValueError(f'{path} is not JSON: {e}') from e
  if missing:
    raise ValueError(f'{path} is not of an autoencoder: it lacks {missing}.')
  for key, value in _EXPECTED.items():
    if config.get(key, value) != value:
      raise ValueError(
        f'{path}: {key} is {config[key]!r}; this code reads {value!r}.'
      )
  return {'norm_num_groups': 32, 'scaling_factor': 0.18215} | config


def _new_name(name: str) -> str:
  return '.'.join(_OLD_NAMES.get(part, part) for part in name.split('.'))


def from_torch(tensors: dict[str, np.ndarray]) -> Params:
  """Parameters of tensors of `shapes`, as `load` gives them."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
  flat = {
    name: np.asarray(value, np.float32).transpose(axes[value.ndim])
    for name, value in tensors.items()
  }
  return traverse_util.unflatten_dict(flat, sep='.')


# ---- What a file must hold ---------------------------------------------------


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Every tensor's name and shape, as PyTorch has it."""
  widths, z = config['block_out_channels'], config['latent_channels']
  depth, top = config['layers_per_block'], widths[-1]
  yield from _conv_shapes('encoder.conv_in', 3, widths[0])
  last = widths[0]
  for i, width in enumerate(widths):
    block = f'encoder.down_blocks.{i}'
    for j in range(depth):
      yield from _resnet_shapes(f'{block}.resnets.{j}', last, width)
      last = width
    if i < len(widths) - 1:
      yield from _conv_shapes(f'{block}.downsamplers.0.conv', width, width)
  yield from _middle_shapes('encoder', top)
  yield from _conv_shapes('encoder.conv_out', top, 2 * z)
  yield from _conv_shapes('quant_conv', 2 * z, 2 * z, side=1)
  yield from _conv_shapes('post_quant_conv', z, z, side=1)
  yield from _conv_shapes('decoder.conv_in', z, top)
  for i, width in enumerate(reversed(widths)):
    block = f'decoder.up_blocks.{i}'
    for j in range(depth + 1):
      before = top if j == 0 else width
      yield from _resnet_shapes(f'{block}.resnets.{j}', before, width)
    top = width
    if i < len(widths) - 1:
      yield from _conv_shapes(f'{block}.upsamplers.0.conv', width, width)
  yield from _middle_shapes('decoder', widths[-1], out=widths[0])
  yield from _conv_shapes('decoder.conv_out', widths[0], 3)


def _conv_shapes(name, before, width, side=3):
  yield f'{name}.weight', (width, before, side, side)
  yield f'{name}.bias', (width,)


def _pair_shapes(name, width):
  yield f'{name}.weight', (width,)
  yield f'{name}.bias', (width,)


def _resnet_shapes(name, before, width):
  yield from _pair_shapes(f'{name}.norm1', before)
  yield from _conv_shapes(f'{name}.conv1', before, width)
  yield from _pair_shapes(f'{name}.norm2', width)
  yield from _conv_shapes(f'{name}.conv2', width, width)
  if before != width:
    yield from _conv_shapes(f'{name}.conv_shortcut', before, width, side=1)


def _middle_shapes(name, width, out=None):
  for i in range(2):
    yield from _resnet_shapes(f'{name}.mid_block.resnets.{i}', width, width)
  attention = f'{name}.mid_block.attentions.0'
  yield from _pair_shapes(f'{attention}.group_norm', width)
  for part in ('to_q', 'to_k', 'to_v', 'to_out.0'):
    yield f'{attention}.{part}.weight', (width, width)
    yield f'{attention}.{part}.bias', (width,)
  yield from _pair_shapes(f'{name}.conv_norm_out', out or width)


# ---- The networks ------------------------------------------------------------


# In full float32, also where a device would round what it multiplies: a cache
# is to hold what diffusers gives.
@jax.default_matmul_precision('highest')
def encode(
  config: dict[str, Any], params: Params, pixels: Array
) -> tuple[Array, Array]:
  """Mean and standard deviation of the latents, not yet scaled.

  Args:
    config: of `load`.
    params: of `load`.
    pixels: [n, h, w, 3] in [-1, 1]; sides multiples of 8.

  Returns:
    [n, h / 8, w / 8, 4] each, for four levels and four channels.
  """
  p, groups = params['encoder'], config['norm_num_groups']
  x = _conv(p['conv_in'], pixels)
  for block in _in_order(p['down_blocks']):
    for resnet in _in_order(block['resnets']):
      x = _resnet(resnet, x, groups)
    if 'downsamplers' in block:
      x = _downsample(block['downsamplers']['0'], x)
  x = _middle(p['mid_block'], x, groups)
  x = _conv(p['conv_out'], _normed(p['conv_norm_out'], x, groups))
  mean, log_variance = jnp.split(_conv(params['quant_conv'], x), 2, -1)
  return mean, jnp.exp(jnp.clip(log_variance, -30, 20) / 2)


@jax.default_matmul_precision('highest')
def decode(config: dict[str, Any], params: Params, latents: Array) -> Array:
  """[n, h, w, 4] latents, not scaled -> [n, 8 h, 8 w, 3], about [-1, 1]."""
  p, groups = params['decoder'], config['norm_num_groups']
  x = _conv(p['conv_in'], _conv(params['post_quant_conv'], latents))
  x = _middle(p['mid_block'], x, groups)
  for block in _in_order(p['up_blocks']):
    for resnet in _in_order(block['resnets']):
      x = _resnet(resnet, x, groups)
    if 'upsamplers' in block:
      x = x.repeat(2, 1).repeat(2, 2)
      x = _conv(block['upsamplers']['0']['conv'], x)
  return _conv(p['conv_out'], _normed(p['conv_norm_out'], x, groups))


def _in_order(blocks: dict[str, Params]) -> list[Params]:
  return [blocks[str(i)] for i in range(len(blocks))]


def _conv(p: Params, x: Array, stride: int = 1, padding: str = 'SAME') -> Array:
  y = jax.lax.conv_general_dilated(
    x,
    p['weight'],
    (stride, stride),
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y + p['bias']


def _downsample(p: Params, x: Array) -> Array:
  # Padded at the bottom and the right alone.
  x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  return _conv(p['conv'], x, stride=2, padding='VALID')


def _norm(p: Params, x: Array, groups: int) -> Array:
  grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
  normed = jax.nn.standardize(grouped, axis=(1, 3), epsilon=1e-6)
  return normed.reshape(x.shape) * p['weight'] + p['bias']


def _normed(p: Params, x: Array, groups: int) -> Array:
  return jax.nn.silu(_norm(p, x, groups))


def _resnet(p: Params, x: Array, groups: int) -> Array:
  y = _conv(p['conv1'], _normed(p['norm1'], x, groups))
  y = _conv(p['conv2'], _normed(p['norm2'], y, groups))
  if 'conv_shortcut' in p:
    x = _conv(p['conv_shortcut'], x)
  return x + y


def _middle(p: Params, x: Array, groups: int) -> Array:
  x = _resnet(p['resnets']['0'], x, groups)
  x = x + _attention(p['attentions']['0'], x, groups)
  return _resnet(p['resnets']['1'], x, groups)


def _attention(p: Params, x: Array, groups: int) -> Array:
  """One head over all positions."""
  n, h, w, channels = x.shape
  flat = _norm(p['group_norm'], x, groups).reshape(n, h * w, channels)
  q, k, v = (
    flat @ p[name]['weight'] + p[name]['bias']
    for name in ('to_q', 'to_k', 'to_v')
  )
  out = jax.nn.dot_product_attention(
    q[:, :, None], k[:, :, None], v[:, :, None]
  )[:, :, 0]
  out = out @ p['to_out']['0']['weight'] + p['to_out']['0']['bias']
  return out.reshape(x.shape)
