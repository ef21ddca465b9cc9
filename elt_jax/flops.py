"""Parameters, multiply-adds and FLOPs of a looped config, from formulas.

A compiler's cost analysis counts the body of a loop once, so these numbers
come from shapes. Only matrix products are counted, attention scores included.
The ELT paper's "GFLOPs" are giga-multiply-adds (its video figures fit no other
reading); here a multiply-add is called MAC and counts as two FLOPs.
"""

import math
from typing import Any

import jax
import numpy as np

from elt_jax.models import grid
from elt_jax.models.vocabulary import build_vocabulary
from elt_jax.samplers import guided_steps


def count_params(params: Any) -> int:
  """Number of parameters of a tree of arrays or of abstract arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def num_tokens(config: Any) -> int:
  """s, the length of the sequence; masked models have a class token too."""
  return math.prod(grid(config)) + (config.model.family == 'masked')


def macs_per_block(config: Any, tokens: int | None = None) -> int:
  """Multiply-adds of one loop over one example: N layers, all tokens.

  Per token and layer 4 d^2 for attention, 2 r d^2 for the MLP and 2 s d for
  scores and weighted sum; s is `tokens`, by default `num_tokens`.
  """
  m, s = config.model, tokens or num_tokens(config)
  per_token = (4 + 2 * m.mlp_ratio) * m.width**2 + 2 * s * m.width
  return int(m.num_layers * s * per_token)


def paper_macs_per_pass(config: Any, loops: int) -> int:
  """`macs_per_pass` as the ELT paper counts: layers alone, no class token."""
  return loops * macs_per_block(config, math.prod(grid(config)))


def macs_per_head(config: Any) -> int:
  """Multiply-adds of the head on one example."""
  m, s = config.model, num_tokens(config)
  if m.family == 'masked':
    return s * m.width * (m.width + build_vocabulary(config).size)
  return 2 * m.width**2 + s * m.width * _patch_values(config)


def macs_per_pass(config: Any, loops: int) -> int:
  """Multiply-adds of one evaluation of the network on one example.

  Embedding, conditioning (once, not per loop), `loops` blocks and one head.
  Looking up tokens costs none.
  """
  m, s = config.model, num_tokens(config)
  before = 0
  if m.family == 'diffusion':
    condition = 256 * m.width + m.width**2 + m.num_layers * 6 * m.width**2
    before = s * _patch_values(config) * m.width + condition
  return before + loops * macs_per_block(config) + macs_per_head(config)


def _patch_values(config: Any) -> int:
  m = config.model
  return m.patch_frames * m.patch_size**2 * config.data.num_channels


def flops_per_sample(
  config: Any, loops: int | list[int], guidance: float | None = None
) -> int:
  """FLOPs of one sample: guidance passes included, a tokenizer's not.

  `loops` is one number, or one per sampling step; `guidance` None takes
  config.sample.guidance.
  """
  scale = config.sample.guidance if guidance is None else guidance
  passes = 1 + guided_steps(config, scale)
  loops = np.broadcast_to(loops, passes.shape)
  return 2 * sum(
    int(p) * macs_per_pass(config, int(n))
    for p, n in zip(passes, loops, strict=True)
  )


def flops_per_step(config: Any) -> int:
  """FLOPs of one training step: backward is twice forward.

  The student's head is counted, recomputation by remat is not.
  """
  exits = {'ilsd': 2, 'none': 1}.get(
    config.objective.exits, config.model.max_loops
  )
  forward = macs_per_pass(config, config.model.max_loops)
  forward += (exits - 1) * macs_per_head(config)
  return 3 * 2 * config.train.batch_size * forward
