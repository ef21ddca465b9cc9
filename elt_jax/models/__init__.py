"""The model of an experiment config, by family."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.config import sample_shape
from elt_jax.models import bert, blocks
from elt_jax.models.elt import ELT
from elt_jax.models.vocabulary import build_vocabulary
from elt_jax.tokenizers.vqgan import VQGAN, build_tokenizer, token_grid


def build_model(
  config: Any, mesh: jax.sharding.Mesh | None = None
) -> ELT | VQGAN:
  """The model of a validated config: a looped transformer, or a tokenizer."""
  family = config.model.family
  if family == 'tokenizer':
    return build_tokenizer(config, mesh)
  m = config.model
  dtype = jnp.dtype(m.dtype)
  pieces = {'diffusion': _diffusion, 'masked': _masked}[family](config, dtype)
  return ELT(
    **pieces,
    num_layers=m.num_layers,
    max_loops=m.max_loops,
    scan_layers=m.scan_layers,
    unroll_loops=m.unroll_loops,
    remat=m.remat,
    residual_scale=1 / m.max_loops if m.residual_scale else 1.0,
    input_injection=m.input_injection,
    loop_embedding=blocks.LoopEmbedding(m.width, dtype)
    if m.loop_embedding
    else None,
    gather=config.mesh.gather,
    mesh=mesh,
  )


def grid(config: Any) -> tuple[int, ...]:
  """The tokens of one example along each axis, (f, h, w) or (h, w)."""
  if config.model.family == 'masked':
    return token_grid(config)
  m, d = config.model, config.data
  side = d.image_size // m.patch_size
  return (d.num_frames // m.patch_frames, side, side)


def _diffusion(config: Any, dtype: jnp.dtype) -> dict[str, Any]:
  """DiT: noisy pixels or latents, time and class in."""
  m, data = config.model, config.data
  patch = (m.patch_frames, m.patch_size, m.patch_size)
  tokens = grid(config)
  return {
    'embed': blocks.DiTEmbed(
      tokens, patch, m.width, data.num_classes, dtype, m.time_scale
    ),
    'layer': blocks.DiTBlock(m.width, m.num_heads, m.mlp_ratio, dtype),
    'head': blocks.DiTHead(tokens, patch, data.num_channels, dtype),
    'inputs': (
      jax.ShapeDtypeStruct(sample_shape(config), jnp.float32),
      jax.ShapeDtypeStruct((), jnp.float32),
      jax.ShapeDtypeStruct((), jnp.int32),
    ),
  }


def _masked(config: Any, dtype: jnp.dtype) -> dict[str, Any]:
  """BERT as in MaskGIT: the class token and the tokens of the grid in."""
  m = config.model
  length = 1 + math.prod(grid(config))
  size = build_vocabulary(config).size
  return {
    'embed': bert.TokenEmbed(size, length, m.width, m.dropout, dtype),
    'layer': bert.BertBlock(
      m.width, m.num_heads, m.mlp_ratio, m.norm, m.dropout, dtype
    ),
    'head': bert.TokenHead(m.norm, dtype),
    'inputs': (jax.ShapeDtypeStruct((length,), jnp.int32),),
  }
