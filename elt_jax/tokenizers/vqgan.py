"""The MaskGIT tokenizer: a convolutional VQ-GAN, for images and for clips.

After Chang et al. (MaskGIT, arXiv 2202.04200) and, with three axes, Yu et al.
(MAGVIT, arXiv 2212.05199): residual blocks of group norm, swish and 3-wide
convolutions; average pooling down, nearest-neighbour repetition up; no
attention. Pixels are in [0, 1]. The parameter tree is that of the public
MaskGIT checkpoints: {'encoder', 'quantizer': {'codebook'}, 'decoder'}.

An option of ours keeps the encoder local. A token that sees its neighbours
tells of them: on moving digits the black cells alone take 580 of 1,024 codes,
and a small masked model learns nothing of such tokens; a local encoder, at a
PSNR 0.5 dB lower with half the codes, gives them one.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from elt_jax.config import sample_shape
from elt_jax.sharding import constrain
from elt_jax.tokenizers.discriminator import Discriminator
from elt_jax.tokenizers.layers import (
  conv,
  group_norm,
  patches_to_waves,
  waves_to_patches,
)

Array = jax.Array
Strides = tuple[tuple[int, ...], ...]


class ResBlock(nn.Module):
  """x + F(x), F twice group norm, swish, convolution.

  Where the width changes, the released model takes the 1-wide shortcut of
  F(x) and not of x; kept, so that its weights mean here what they meant there.
  """

  features: int
  rank: int
  groups: int
  dtype: Any = jnp.float32
  local: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = (1 if self.local else 3,) * self.rank
    y = x
    for _ in range(2):
      y = nn.swish(group_norm(self.groups, self.dtype, self.local)(y))
      y = conv(self.features, kernel, use_bias=False, dtype=self.dtype)(y)
    if x.shape[-1] == self.features:
      return x + y
    ones = (1,) * self.rank
    return y + conv(self.features, ones, use_bias=False, dtype=self.dtype)(y)


class Encoder(nn.Module):
  """[b, (f,) h, w, c] -> [b, (f',) h', w', embedding_dim].

  Attributes:
    patch: pixels along each axis that enter as the channels of one position,
      e.g. (1, 1).
    filters: width of the first level.
    multipliers: width of each level, times `filters`.
    strides: of the pooling after each level but the last, e.g. (2, 2).
    num_res_blocks: per level, and at the end.
    embedding_dim: width of the codebook.
    groups: of the group norms.
    dtype: of the computation.
    remat: whether the backward pass recomputes each residual block.
    mesh: over which examples are split, or None.
    local: whether a position sees others by pooling alone, with norms and
      1-wide convolutions of its own.
  """

  patch: tuple[int, ...]
  filters: int
  multipliers: tuple[int, ...]
  strides: Strides
  num_res_blocks: int
  embedding_dim: int
  groups: int
  dtype: Any = jnp.float32
  remat: bool = False
  mesh: Mesh | None = None
  local: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    rank = x.ndim - 2
    block = functools.partial(
      ResBlock,
      rank=rank,
      groups=self.groups,
      dtype=self.dtype,
      local=self.local,
    )
    apply = _apply(self.remat, self.mesh)
    kernel = (1 if self.local else 3,) * rank
    x = patches_to_waves(x, self.patch)
    x = conv(self.filters, kernel, use_bias=False, dtype=self.dtype)(x)
    for level, multiplier in enumerate(self.multipliers):
      for _ in range(self.num_res_blocks):
        x = apply(block(self.filters * multiplier), x)
      if level < len(self.strides):
        x = nn.avg_pool(x, self.strides[level], self.strides[level])
    for _ in range(self.num_res_blocks):
      x = apply(block(x.shape[-1]), x)
    x = nn.swish(group_norm(self.groups, self.dtype, self.local)(x))
    return conv(
      self.embedding_dim, (1,) * rank, ('embed', None), dtype=self.dtype
    )(x)


class Decoder(nn.Module):
  """The mirror of `Encoder`: [b, (f',) h', w', e] -> [b, (f,) h, w, c]."""

  patch: tuple[int, ...]
  filters: int
  multipliers: tuple[int, ...]
  strides: Strides
  num_res_blocks: int
  channels: int
  groups: int
  dtype: Any = jnp.float32
  remat: bool = False
  mesh: Mesh | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    rank = x.ndim - 2
    apply = _apply(self.remat, self.mesh)
    kernel = (3,) * rank
    block = functools.partial(
      ResBlock, rank=rank, groups=self.groups, dtype=self.dtype
    )
    width = self.filters * self.multipliers[-1]
    x = conv(width, kernel, dtype=self.dtype)(x)
    for _ in range(self.num_res_blocks):
      x = apply(block(width), x)
    for level in reversed(range(len(self.multipliers))):
      for _ in range(self.num_res_blocks):
        x = apply(block(self.filters * self.multipliers[level]), x)
      if level > 0:
        for axis, stride in enumerate(self.strides[level - 1]):
          x = jnp.repeat(x, stride, axis + 1)
        x = conv(x.shape[-1], kernel, dtype=self.dtype)(x)
    x = nn.swish(group_norm(self.groups, self.dtype)(x))
    channels = self.channels * math.prod(self.patch)
    x = conv(channels, kernel, ('embed', None), dtype=self.dtype)(x)
    return waves_to_patches(x, self.patch)


def _apply(
  remat: bool, mesh: Mesh | None
) -> Callable[[nn.Module, Array], Array]:
  """(block, x) -> block(x), split over examples; the block keeps its name."""
  apply = lambda block, x: constrain(block(x), ('batch',), mesh)
  return nn.remat(apply) if remat else apply


def distances(z: Array, codebook: Array) -> Array:
  """Squared distances of [..., e] vectors to [v, e] codes: [n, v] float32."""
  z = z.reshape(-1, z.shape[-1]).astype(jnp.float32)
  # A TPU's default precision would change which code is nearest.
  product = jnp.dot(z, codebook.T, precision='highest')
  return (
    jnp.sum(jnp.square(z), 1, keepdims=True)
    - 2 * product
    + jnp.sum(jnp.square(codebook), 1)
  )


@dataclasses.dataclass(frozen=True)
class VQGAN:
  """The tokenizer as pure functions of its parameters.

  Attributes:
    encoder: module pixels -> vectors.
    decoder: module vectors -> pixels.
    codebook_size: number of codes.
    embedding_dim: their width.
    shape: of one example, (h, w, c) or (f, h, w, c).
    grid: of its tokens, (h', w') or (f', h', w').
    discriminator: the critic of its training, or None.
  """

  encoder: Encoder
  decoder: Decoder
  codebook_size: int
  embedding_dim: int
  shape: tuple[int, ...]
  grid: tuple[int, ...]
  discriminator: Discriminator | None = None

  def example_inputs(self) -> tuple[Array]:
    """Zeros of the shapes `init` takes."""
    return (jnp.zeros((1, *self.shape)),)

  def init(self, key: Array, x: Array) -> Any:
    """Initial parameters, boxed with their logical axes."""
    key_encoder, key_codebook, key_decoder, key_critic = jax.random.split(
      key, 4
    )
    z, encoder = self.encoder.init_with_output(key_encoder, x)
    # Uniform of variance 1 / codes, as in the released model.
    codebook = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'uniform', in_axis=0, out_axis=1
    )(key_codebook, (self.codebook_size, self.embedding_dim))
    params = {
      'encoder': encoder['params'],
      'quantizer': {'codebook': nn.Partitioned(codebook, ('vocab', None))},
      'decoder': self.decoder.init(key_decoder, z)['params'],
    }
    if self.discriminator is not None:
      critic = self.discriminator.init(key_critic, x)
      params['discriminator'] = critic['params']
    return params

  def encode(self, params: Any, x: Array) -> Array:
    """[b, *shape] pixels in [0, 1] -> [b, *grid, e] vectors, float32."""
    if x.shape[1:] != self.shape:
      raise ValueError(
        f'The tokenizer was built for examples {self.shape}, got {x.shape[1:]}.'
      )
    z = self.encoder.apply({'params': params['encoder']}, x)
    return z.astype(jnp.float32)

  def quantize(self, params: Any, z: Array) -> Array:
    """[b, *grid, e] -> int32 [b, *grid], the nearest code of each vector."""
    nearest = jnp.argmin(distances(z, params['quantizer']['codebook']), -1)
    return nearest.reshape(z.shape[:-1]).astype(jnp.int32)

  def lookup(self, params: Any, tokens: Array) -> Array:
    """int32 [b, *grid] -> [b, *grid, e] codes."""
    return params['quantizer']['codebook'][tokens]

  def decode_vectors(self, params: Any, z: Array) -> Array:
    """[b, *grid, e] -> float32 [b, *shape] pixels, not clipped."""
    x = self.decoder.apply({'params': params['decoder']}, z)
    return x.astype(jnp.float32)

  def tokens(self, params: Any, x: Array) -> Array:
    """[b, *shape] pixels in [0, 1] -> int32 [b, *grid] tokens."""
    return self.quantize(params, self.encode(params, x))

  def decode(self, params: Any, tokens: Array) -> Array:
    """int32 [b, *grid] tokens -> float32 [b, *shape] pixels in [0, 1]."""
    x = self.decode_vectors(params, self.lookup(params, tokens))
    return jnp.clip(x, 0, 1)


def strides(config: Any) -> Strides:
  """The pooling between levels: 2 in space; in time where the config says."""
  t = config.tokenizer
  space = (2, 2)
  if config.data.num_frames == 1:
    return (space,) * (len(t.channel_multipliers) - 1)
  return tuple((2 if halve else 1, *space) for halve in t.temporal_downsample)


def patch(config: Any) -> tuple[int, ...]:
  """The pixels of one position of the first level, along each axis."""
  t = config.tokenizer
  frames = () if config.data.num_frames == 1 else (t.patch_frames,)
  return (*frames, t.patch_size, t.patch_size)


def token_grid(config: Any) -> tuple[int, ...]:
  """(h', w'), or (f', h', w') with several frames."""
  *pixels, _ = sample_shape(config)
  steps = zip(patch(config), *strides(config), strict=True)
  return tuple(n // math.prod(s) for n, s in zip(pixels, steps, strict=True))


def build_tokenizer(config: Any, mesh: Mesh | None = None) -> VQGAN:
  """The tokenizer of an experiment config."""
  t = config.tokenizer
  dtype = jnp.dtype(config.model.dtype)
  shared = dict(
    patch=patch(config),
    filters=t.filters,
    multipliers=tuple(t.channel_multipliers),
    strides=strides(config),
    num_res_blocks=t.num_res_blocks,
    groups=t.norm_groups,
    dtype=dtype,
    remat=config.model.remat == 'layer',
    mesh=mesh,
  )
  return VQGAN(
    encoder=Encoder(
      embedding_dim=t.embedding_dim, local=t.local_encoder, **shared
    ),
    decoder=Decoder(channels=config.data.num_channels, **shared),
    codebook_size=t.codebook_size,
    embedding_dim=t.embedding_dim,
    shape=sample_shape(config),
    grid=token_grid(config),
    discriminator=Discriminator(
      t.discriminator_filters, tuple(t.discriminator_multipliers), dtype
    )
    if t.adversarial
    else None,
  )
