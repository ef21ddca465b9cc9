"""The public MaskGIT checkpoints (google-research/maskgit, Apache-2.0).

Four flax-msgpack files, maskgit_imagenet{256,512}_checkpoint and
tokenizer_imagenet{256,512}_checkpoint, read with msgpack and numpy alone. The
tokenizer's tree is ours; the transformer becomes an unlooped model, N layers
applied once. No config comes with the files: sizes are read off the shapes.
"""

import math
import pathlib
import re
from typing import Any

from flax import traverse_util
import ml_collections
import msgpack
import numpy as np

from configs.base import get_base
from elt_jax.models import build_model
from elt_jax.tokenizers.pretrained import Tokenizer, check_shapes
from elt_jax.validation import validate

# theirs -> ours, outside the layers and within one.
OUTSIDE = {
  'Embed_0/word_embeddings/embedding': 'embed/tokens',
  'Embed_0/position_embeddings/embedding': 'embed/positions',
  'Embed_0/embeddings_ln/scale': 'embed/norm/scale',
  'Embed_0/embeddings_ln/bias': 'embed/norm/bias',
  'MlmLayer_0/mlm_dense/kernel': 'head/dense/kernel',
  'MlmLayer_0/mlm_dense/bias': 'head/dense/bias',
  'MlmLayer_0/mlm_ln/scale': 'head/dense_norm/scale',
  'MlmLayer_0/mlm_ln/bias': 'head/dense_norm/bias',
  'MlmLayer_0/mlm_bias/bias': 'head/bias',
}
LAYER = {
  'Attention_0/self_attention/out/kernel': 'attention/out/kernel',
  'Attention_0/self_attention/out/bias': 'attention/out/bias',
  'Attention_0/attention_output_ln/scale': 'attention_norm/scale',
  'Attention_0/attention_output_ln/bias': 'attention_norm/bias',
  'Mlp_0/intermediate_output/kernel': 'mlp/in/kernel',
  'Mlp_0/intermediate_output/bias': 'mlp/in/bias',
  'Mlp_0/layer_output/kernel': 'mlp/out/kernel',
  'Mlp_0/layer_output/bias': 'mlp/out/bias',
  'Mlp_0/layer_output_ln/scale': 'mlp_norm/scale',
  'Mlp_0/layer_output_ln/bias': 'mlp_norm/bias',
}
QKV = tuple(
  f'Attention_0/self_attention/{name}' for name in ('query', 'key', 'value')
)


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a flax-msgpack file, by path: 'Embed_0/.../embedding'.

  Raises:
    ValueError: if the file is missing, truncated, or holds anything but
      nested dicts of float arrays below 'params'.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'There is no MaskGIT checkpoint {path}.')
  try:
    tree = msgpack.unpackb(
      path.read_bytes(), ext_hook=_array, raw=False, strict_map_key=True
    )
  except (ValueError, TypeError, msgpack.UnpackException) as e:
    raise ValueError(
      f'{path} is not a whole flax-msgpack file ({e or type(e).__name__}): '
      'was the download interrupted?'
    ) from e
  if not isinstance(tree, dict) or not isinstance(tree.get('params'), dict):
    raise ValueError(f"{path} has no 'params' at its top: not a checkpoint.")
  flat = traverse_util.flatten_dict(tree['params'], sep='/')
  for name, value in flat.items():
    if not isinstance(value, np.ndarray) or value.dtype.kind != 'f':
      raise ValueError(f'{path}: {name} is not an array of floats.')
  return flat


def _array(code: int, data: bytes) -> np.ndarray:
  """Flax's extension type 1: msgpack of (shape, dtype name, bytes)."""
  if code != 1:
    raise ValueError(f'extension type {code} is not an array')
  shape, dtype, buffer = msgpack.unpackb(data, raw=False)
  if not re.fullmatch(r'(float|int|uint)(8|16|32|64)', dtype):
    raise ValueError(f'an array of dtype {dtype!r}')
  return np.frombuffer(buffer, dtype).reshape(shape)


def load(
  path: str | pathlib.Path,
) -> tuple[ml_collections.ConfigDict, Any, Tokenizer]:
  """(config, parameters, tokenizer) of a released model.

  Args:
    path: a maskgit_*_checkpoint file, or the directory of one; its
      tokenizer_*_checkpoint stands beside it.

  Raises:
    ValueError: if a file is missing or more than one would do, is truncated,
      or has an array of an unexpected name or shape.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = sorted(path.glob('maskgit_*_checkpoint'))
    if len(found) != 1:
      names = [p.name for p in found] or 'none'
      raise ValueError(
        f'{path} must hold one maskgit_*_checkpoint, found {names}; give the '
        'path of a file to choose.'
      )
    path = found[0]
  if not path.name.startswith('maskgit_'):
    raise ValueError(
      f'{path} must be named maskgit_*, with a tokenizer_* file beside it.'
    )
  beside = path.with_name(path.name.replace('maskgit_', 'tokenizer_', 1))
  stage1, stage2 = read(beside), read(path)
  config = _config(path, stage2, beside, stage1)
  params = _params(path, stage2, config)
  trees = traverse_util.unflatten_dict(stage1, sep='/')
  tokenizer_config = config.copy_and_resolve_references()
  tokenizer_config.model.family = 'tokenizer'
  return config, params, Tokenizer(tokenizer_config, trees)


def _config(
  path: pathlib.Path,
  stage2: dict[str, np.ndarray],
  beside: pathlib.Path,
  stage1: dict[str, np.ndarray],
) -> ml_collections.ConfigDict:
  """A config whose sizes are those of the arrays."""
  shape = lambda name, axes: _shape(path, stage2, name, axes)
  vocabulary, width = shape('Embed_0/word_embeddings/embedding', 2)
  length, _ = shape('Embed_0/position_embeddings/embedding', 2)
  _, heads, _ = shape(f'TransformerLayer_0/{QKV[0]}/kernel', 3)
  _, hidden = shape('TransformerLayer_0/Mlp_0/intermediate_output/kernel', 2)
  c = get_base()
  c.tokenizer.update(_tokenizer_sizes(beside, stage1))
  side = math.isqrt(length - 1)
  c.model.update(
    {
      'family': 'masked',
      'width': width,
      'num_heads': heads,
      'mlp_ratio': hidden / width,
      'num_layers': _count(stage2, r'TransformerLayer_(\d+)/'),
      'max_loops': 1,
      # Trained without a null class: it cannot be guided.
      'vocabulary': 'codebook|classes|mask',
    }
  )
  c.objective.update({'exits': 'none', 'label_dropout': 0.0})
  halvings = len(c.tokenizer.channel_multipliers) - 1
  c.data.update(
    {
      'source': 'tokens:',
      'image_size': side * 2**halvings,
      'num_channels': _shape(beside, stage1, 'encoder/Conv_0/kernel', 4)[2],
      'num_classes': vocabulary - c.tokenizer.codebook_size - 1,
    }
  )
  # The released sampler: tokens at temperature 1, 16 steps in its demo.
  c.sample.update(
    {
      'method': 'confidence',
      'num_steps': 16,
      'guidance': 1.0,
      'temperature_bias': 1.0,
      'temperature_scale': 0.0,
      'batch_size': 8,
    }
  )
  return validate(c)


def _tokenizer_sizes(
  path: pathlib.Path, flat: dict[str, np.ndarray]
) -> dict[str, Any]:
  """Values of config.tokenizer."""
  shape = lambda name, axes: _shape(path, flat, name, axes)
  *_, filters = shape('encoder/Conv_0/kernel', 4)
  codes, dim = shape('quantizer/codebook', 2)
  # The decoder has a convolution before, between and after its levels; the
  # encoder's residual blocks belong to its levels and to the middle.
  levels = max(_count(flat, r'decoder/Conv_(\d+)/kernel') - 1, 1)
  blocks = max(_count(flat, r'encoder/ResBlock_(\d+)/') // (levels + 1), 1)
  widths = [
    shape(f'encoder/ResBlock_{level * blocks}/Conv_0/kernel', 4)[-1]
    for level in range(levels)
  ]
  return {
    'filters': filters,
    'channel_multipliers': tuple(width // filters for width in widths),
    'num_res_blocks': blocks,
    'codebook_size': codes,
    'embedding_dim': dim,
  }


def _params(
  path: pathlib.Path,
  flat: dict[str, np.ndarray],
  config: ml_collections.ConfigDict,
) -> Any:
  """Our parameters, float32; every array of the file is used."""
  num_layers = config.model.num_layers
  ours, used = {}, set()

  def take(*names: str) -> np.ndarray:
    """[len(names), ...]"""
    first, *shapes = (_shape(path, flat, name) for name in names)
    for name, shape in zip(names[1:], shapes, strict=True):
      if shape != first:
        raise ValueError(f'{path}: {name} is {shape}, {names[0]} is {first}.')
    used.update(names)
    return np.stack([flat[name] for name in names]).astype(np.float32)

  for theirs, name in OUTSIDE.items():
    ours[name] = take(theirs)[0]
  layers = [f'TransformerLayer_{n}' for n in range(num_layers)]
  for theirs, name in LAYER.items():
    ours[f'layers/{name}'] = take(*(f'{layer}/{theirs}' for layer in layers))
  for kind, axis in (('kernel', 2), ('bias', 1)):
    of_layer = [
      take(*(f'{layer}/{part}/{kind}' for layer in layers)) for part in QKV
    ]
    if len({part.shape for part in of_layer}) > 1:
      shapes = [part.shape[1:] for part in of_layer]
      raise ValueError(f'{path}: {kind}s of query, key, value are {shapes}.')
    ours[f'layers/attention/qkv/{kind}'] = np.stack(of_layer, axis)
  if extra := sorted(flat.keys() - used):
    raise ValueError(f'{path} has arrays of no known use: {extra[:5]}.')
  params = traverse_util.unflatten_dict(ours, sep='/')
  check_shapes(str(path), params, build_model(config))
  return params


def _shape(
  path: pathlib.Path,
  flat: dict[str, np.ndarray],
  name: str,
  axes: int | None = None,
) -> tuple[int, ...]:
  """Of an array that must be there, with so many `axes` if they are given."""
  if name not in flat:
    raise ValueError(f'{path} lacks {name}.')
  shape = flat[name].shape
  if axes and (len(shape) != axes or 0 in shape):
    raise ValueError(f'{path}: {name} is {shape}, expected {axes} axes.')
  return shape


def _count(flat: dict[str, np.ndarray], pattern: str) -> int:
  """How many numbers the pattern's group takes."""
  matches = (re.match(pattern, name) for name in flat)
  return len({match[1] for match in matches if match})
