"""Parameters, multiply-adds and FLOPs of a looped config, from formulas.

A compiler's cost analysis counts the body of a loop once, so these numbers
come from shapes. Only matrix products are counted, attention scores included.
The ELT paper's "GFLOPs" are giga-multiply-adds (its video figures fit no other
reading); here a multiply-add is called MAC and counts as two FLOPs.
"""

from collections.abc import Iterable
import math
from typing import Any

import jax
import numpy as np

from elt_jax.models import grid
from elt_jax.models.vocabulary import build_vocabulary
from elt_jax.samplers.plan import Plan


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
  config: Any, plan: Plan, loops: np.ndarray | None = None
) -> float:
  """FLOPs of one sample: every pass and head that is run, no tokenizer.

  Args:
    config: of the model.
    plan: of the K steps.
    loops: [K, 2], what the conditional and the unconditional pass of each step
      really ran, where that is not what the plan allows at most.
  """
  if loops is None:
    loops = np.stack([plan.loops, plan.null_loops], -1)
  block, head = macs_per_block(config), macs_per_head(config)
  first = macs_per_pass(config, 0)  # All but the loops, one head with it.
  total = np.sum(plan.exit_loop > 0) * head
  for run in np.asarray(loops, np.float64).T:
    looks = 1.0  # Heads: at the end, or wherever the output is compared.
    if config.sample.watch == 'output':
      begun = np.maximum(plan.min_loops - 1, 1)
      looks = np.where(plan.tolerance > 0, np.maximum(run - begun, 0) + 1, 1)
    total += np.sum((run > 0) * (first + run * block + (looks - 1) * head))
  return 2 * float(total)


def gflops_per_sample(
  config: Any, spent: Iterable[tuple[Plan, np.ndarray]]
) -> float:
  """GFLOPs of a sample over its run and every round of refinement.

  `spent` has (plan, loops really run) of each, as `Draw.sample` gives them.
  """
  return sum(flops_per_sample(config, *run) for run in spent) / 1e9


def flops_per_step(config: Any) -> float:
  """FLOPs of one training step: backward is twice forward.

  The student's head is counted, recomputation by remat is not; of a random
  depth, the mean.
  """
  m, o = config.model, config.objective
  exits = {'ilsd': 2, 'none': 1}.get(o.exits, m.max_loops)
  depth = m.max_loops
  if o.randomize_max_loops:
    depth = (o.randomize_max_loops + depth) / 2
  forward = macs_per_pass(config, 0) + depth * macs_per_block(config)
  forward += (exits - 1) * macs_per_head(config)
  return 3 * 2 * config.train.batch_size * forward
