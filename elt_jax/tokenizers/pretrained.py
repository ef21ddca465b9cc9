"""A trained tokenizer: its weights, its files and its fingerprint.

A directory of two files, config.json and weights.npz, kept beside whatever
depends on it: a cache of tokens, and every workdir trained on that cache. So
no later training of the tokenizer can change what old tokens mean.
"""

from collections.abc import Callable
import hashlib
import json
from typing import Any

from etils import epath
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from elt_jax import config as config_lib
from elt_jax import files, hosts, sharding
from elt_jax.mesh import data_mesh
from elt_jax.tokenizers.vqgan import build_tokenizer
from elt_jax.validation import lookup

# What decides the meaning of a token, besides the weights.
STRUCTURE = (
  'data.image_size',
  'data.num_channels',
  'data.num_frames',
  'tokenizer.patch_size',
  'tokenizer.patch_frames',
  'tokenizer.local_encoder',
  'tokenizer.filters',
  'tokenizer.channel_multipliers',
  'tokenizer.temporal_downsample',
  'tokenizer.num_res_blocks',
  'tokenizer.norm_groups',
  'tokenizer.codebook_size',
  'tokenizer.embedding_dim',
)


def structure(config: Any) -> dict[str, Any]:
  """The values of `STRUCTURE`."""
  return {key: lookup(config, key) for key in STRUCTURE}


class Tokenizer:
  """Images to tokens and back.

  Attributes:
    config: the experiment config it was trained with.
    params: {'encoder', 'quantizer', 'decoder'}, numpy.
    fingerprint: of structure and weights, 16 hexadecimal digits.
  """

  def __init__(self, config: ml_collections.ConfigDict, params: Any):
    """Checks `params` against the config's shapes.

    Raises:
      ValueError: naming an array that is missing, extra or of another shape.
    """
    self.config = config
    model = build_tokenizer(config)
    self.grid = model.grid
    self.params = {
      part: hosts.fetch(params[part])
      for part in ('encoder', 'quantizer', 'decoder')
      if part in params
    }
    check_shapes('The tokenizer', self.params, model)
    self.fingerprint = _fingerprint(config, self.params)
    self._on_device = jax.tree.map(jnp.asarray, self.params)
    self._encode = jax.jit(model.tokens)
    self._decode = jax.jit(lambda p, tokens: 2 * model.decode(p, tokens) - 1)

  def encode(self, pixels: np.ndarray, batch_size: int = 96) -> np.ndarray:
    """float32 [n, (f,) h, w, c] in [0, 1] -> int32 [n, *grid].

    Batches have one shape, the last one filled up.

    Raises:
      ValueError: on pixels out of range or of another shape.
    """
    low, high = float(np.min(pixels)), float(np.max(pixels))
    if not 0 <= low <= high <= 1:
      raise ValueError(
        f'The tokenizer takes pixels in [0, 1], got [{low:.3g}, {high:.3g}].'
      )
    encode = lambda part: self._encode(self._on_device, part)
    return in_batches(encode, pixels, batch_size)

  def reconstruct(self, tokens: np.ndarray, batch_size: int = 96) -> np.ndarray:
    """int32 [n, *grid] -> float32 [n, (f,) h, w, c] in [0, 1]."""
    return (in_batches(self.decode, tokens, batch_size) + 1) / 2

  def decode(self, tokens: Any) -> jax.Array:
    """int32 [b, *grid] -> float32 [b, (f,) h, w, c] in [-1, 1].

    Raises:
      ValueError: on a token outside the codebook.
    """
    size = self.config.tokenizer.codebook_size
    low, high = int(tokens.min()), int(tokens.max())
    if not 0 <= low <= high < size:
      raise ValueError(
        f'Tokens must be in 0..{size - 1}, the codebook; got {low}..{high}.'
      )
    return self._decode(self._on_device, tokens)

  def save(self, directory: epath.PathLike) -> None:
    """Writes config.json and weights.npz, weights first."""
    directory = epath.Path(directory)
    flat = traverse_util.flatten_dict(self.params, sep='/')
    with files.replacing(directory / 'weights.npz') as temporary:
      np.savez(temporary, **flat)
    files.write_text(directory / 'config.json', config_lib.to_json(self.config))


def in_batches(
  function: Callable[[Any], Any], x: np.ndarray, batch_size: int
) -> Any:
  """`function` over the first axis, in batches of one shape, on all devices.

  Gives numpy, an array or a tree of them as `function` does.
  """
  mesh = data_mesh()
  batch_size = -(-batch_size // mesh.size) * mesh.size
  batched = sharding.batch_sharding(mesh)
  found = []
  for index in sharding.padded_batches(len(x), batch_size):
    found.append(hosts.fetch(function(jax.device_put(x[index], batched))))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(x)], *found)


def load(directory: epath.PathLike) -> Tokenizer:
  """What `Tokenizer.save` wrote.

  Raises:
    ValueError: if a file is missing, unreadable, or does not fit the other.
  """
  directory = epath.Path(directory)
  path = directory / 'weights.npz'
  if not path.is_file() or not (directory / 'config.json').is_file():
    raise ValueError(
      f'{directory} holds no tokenizer: weights.npz or config.json is missing.'
    )
  config = config_lib.load(directory)
  params = traverse_util.unflatten_dict(files.read_npz(path), sep='/')
  return Tokenizer(config, params)


def check_fits(config: Any, tokenizer: Tokenizer) -> None:
  """Raises ValueError unless `config` describes the tokenizer it depends on."""
  wanted, got = structure(config), structure(tokenizer.config)
  differ = [
    f'{key}: {got[key]!r} in the tokenizer, {wanted[key]!r} here'
    for key in STRUCTURE
    if wanted[key] != got[key]
  ]
  if differ:
    raise ValueError(
      f'The config is made for another tokenizer ({"; ".join(differ)}).'
    )


def check_shapes(what: str, params: Any, model: Any) -> None:
  """Raises ValueError unless `params` are the arrays that `model` takes.

  A tokenizer's critic, which only training needs, does not count.
  """
  wanted = nn.unbox(
    jax.eval_shape(model.init, jax.random.key(0), *model.example_inputs())
  )
  wanted.pop('discriminator', None)
  got = traverse_util.flatten_dict(params, sep='/')
  wanted = traverse_util.flatten_dict(wanted, sep='/')
  for name in sorted(got.keys() | wanted.keys()):
    shapes = [
      tuple(tree[name].shape) if name in tree else 'nothing'
      for tree in (got, wanted)
    ]
    if shapes[0] != shapes[1]:
      raise ValueError(f'{what}: {name} is {shapes[0]}, expected {shapes[1]}.')


def _fingerprint(config: Any, params: Any) -> str:
  # Keys that came later count where they are used: older fingerprints stay.
  later = {
    'tokenizer.patch_size': 1,
    'tokenizer.patch_frames': 1,
    'tokenizer.local_encoder': False,
  }
  decides = {
    key: value
    for key, value in structure(config).items()
    if key not in later or value != later[key]
  }
  return digest_of(decides, params)


def digest_of(decides: dict[str, Any], params: Any) -> str:
  """16 hexadecimal digits of a tree of weights and of what else decides."""
  digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
  flat = traverse_util.flatten_dict(params, sep='/')
  for name in sorted(flat):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(flat[name], np.float32).tobytes())
  return digest.hexdigest()[:16]
