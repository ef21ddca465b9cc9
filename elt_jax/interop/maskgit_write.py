"""Files in the public MaskGIT format: what `interop.maskgit` reads."""

import pathlib
from typing import Any

from flax import linen as nn
from flax import serialization, traverse_util
import jax
import ml_collections
import numpy as np

from configs.base import get_base
from elt_jax import files
from elt_jax.interop.maskgit import LAYER, OUTSIDE, QKV
from elt_jax.models import build_model
from elt_jax.tokenizers.pretrained import Tokenizer
from elt_jax.validation import validate


def save(
  directory: str | pathlib.Path,
  config: ml_collections.ConfigDict,
  params: Any,
  tokenizer: Tokenizer,
) -> pathlib.Path:
  """Writes maskgit_imagenetN_checkpoint and tokenizer_imagenetN_checkpoint.

  Args:
    directory: where to; N is the size of the images.
    config: of an unlooped masked model with the public order of ids.
    params: of the model.
    tokenizer: that its tokens are of.

  Returns:
    The path of the first.

  Raises:
    ValueError: if the format cannot say what the model is, or if one of the
      files is there already.
  """
  m = config.model
  if m.family != 'masked' or m.max_loops != 1 or m.norm != 'post':
    raise ValueError(
      'The MaskGIT format is of unlooped masked models with norms after their '
      f'residuals; got model.family {m.family!r}, max_loops {m.max_loops}, '
      f'norm {m.norm!r}.'
    )
  if m.vocabulary != 'codebook|classes|mask':
    raise ValueError(
      "The MaskGIT format has model.vocabulary = 'codebook|classes|mask', got "
      f'{m.vocabulary!r}.'
    )
  directory = pathlib.Path(directory)
  name = f'imagenet{config.data.image_size}_checkpoint'
  trees = {
    f'tokenizer_{name}': jax.device_get(tokenizer.params),
    f'maskgit_{name}': _theirs(params, m.num_layers),
  }
  for file in trees:
    if (directory / file).exists():
      raise ValueError(f'{directory / file} exists already.')
  for file, tree in trees.items():
    with files.replacing(directory / file) as temporary:
      temporary.write_bytes(serialization.to_bytes({'params': tree}))
  return directory / f'maskgit_{name}'


def _theirs(params: Any, num_layers: int) -> Any:
  """Our parameters under their names."""
  ours = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  flat = {theirs: ours[name] for theirs, name in OUTSIDE.items()}
  for n in range(num_layers):
    layer = f'TransformerLayer_{n}'
    for theirs, name in LAYER.items():
      flat[f'{layer}/{theirs}'] = ours[f'layers/{name}'][n]
    for kind, axis in (('kernel', 1), ('bias', 0)):
      stacked = ours[f'layers/attention/qkv/{kind}'][n]
      for part, value in zip(QKV, np.moveaxis(stacked, axis, 0), strict=True):
        flat[f'{layer}/{part}/{kind}'] = value
  return traverse_util.unflatten_dict(flat, sep='/')


def save_random(directory: str | pathlib.Path, seed: int = 0) -> pathlib.Path:
  """`save` of a small model of random weights: 3 layers, 8 x 8 tokens.

  It has learned nothing and draws noise; it stands in for the public files
  where only the way they are used is to be seen.
  """
  c = get_base()
  c.model.update(
    {
      'family': 'masked',
      'width': 64,
      'num_layers': 3,
      'max_loops': 1,
      'num_heads': 4,
      'vocabulary': 'codebook|classes|mask',
    }
  )
  c.objective.update({'exits': 'none', 'label_dropout': 0.0})
  c.tokenizer.update(
    {
      'filters': 32,
      'channel_multipliers': (1, 1, 2),
      'num_res_blocks': 1,
      'codebook_size': 64,
      'embedding_dim': 16,
    }
  )
  c.data.update({'source': 'tokens:', 'image_size': 32, 'num_channels': 3})
  c.sample.update({'method': 'confidence', 'guidance': 1.0})
  config = validate(c)
  of_tokenizer = config.copy_and_resolve_references()
  of_tokenizer.model.family = 'tokenizer'
  rng = np.random.default_rng(seed)
  params, codes = (_random(build_model(c), rng) for c in (config, of_tokenizer))
  codes.pop('discriminator', None)
  return save(directory, config, params, Tokenizer(of_tokenizer, codes))


def _random(model: Any, rng: np.random.Generator) -> Any:
  """Arrays that keep a signal's size: kernels by fan-in, scales near one."""
  shapes = nn.unbox(
    jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
  )

  def draw(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> np.ndarray:
    name, n = path[-1].key, rng.standard_normal(x.shape, np.float32)
    if name == 'scale':
      return 1 + n / 10
    if name == 'bias':
      return n / 10
    if name == 'kernel':
      return n / np.float32(np.sqrt(np.prod(x.shape[:-1])))
    return n / 2

  return jax.tree_util.tree_map_with_path(draw, shapes)
