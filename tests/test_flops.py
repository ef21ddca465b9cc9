"""Formulas against the compiler's count and the paper's figures."""

import jax
import numpy as np
import pytest

from elt_jax import flops
from elt_jax.models import build_model
from elt_jax.samplers.plan import build_plan
from tests.helpers import abstract_params, make_inputs


def compiled_flops(config, loops):
  """FLOPs that XLA counts in one pass over one example, loops unrolled."""
  config.model.unroll_loops = True
  model, inputs = build_model(config), make_inputs(config, batch=1)
  run = lambda p, i: model.apply(p, *i, num_loops=loops)[0]
  lowered = jax.jit(run).lower(abstract_params(config), inputs)
  return lowered.compile().cost_analysis()['flops']


def test_block_and_pass_agree_with_the_compiler(config):
  config.model.width, config.model.num_heads = 128, 4
  config.model.num_layers = 2
  config.data.image_size = 16
  two, three = (compiled_flops(config, loops) for loops in (2, 3))
  # The compiler also counts elementwise work: a little more, never less.
  block = 2 * flops.macs_per_block(config)
  assert block <= three - two < 1.08 * block
  whole = 2 * flops.macs_per_pass(config, 2)
  assert whole <= two < 1.08 * whole


@pytest.mark.parametrize(
  'layers,width,side,gmacs',
  # ELT, arXiv 2604.09168: video L, image L and XL, giga-multiply-adds a pass.
  [(24, 1024, 32, 360.8), (24, 1024, 16, 80.5), (28, 1152, 16, 118.4)],
)
def test_transformer_reproduces_the_papers_counts(
  config, layers, width, side, gmacs
):
  config.model.update({'num_layers': layers, 'width': width, 'patch_size': 1})
  config.data.image_size = side
  np.testing.assert_allclose(
    flops.macs_per_block(config) / 1e9, gmacs, rtol=1e-3
  )


def test_cost_of_a_sample_follows_steps_loops_and_guidance(config):
  s = config.sample
  s.num_steps, s.guidance = 10, 1.0
  cost = lambda loops, **changes: flops.flops_per_sample(
    config, build_plan(config, loops, **changes)
  )
  one = cost(2)
  assert one == 2 * 10 * flops.macs_per_pass(config, 2)
  assert cost(2, guidance=3.0) == 2 * one
  s.guidance_low = 0.55
  assert cost(2, guidance=3.0) == 1.5 * one
  assert cost([1] * 5 + [3] * 5) == one


def test_a_step_counts_the_students_head(config):
  steps = {}
  for exits in ('none', 'ilsd', 'all'):
    config.objective.exits = exits
    steps[exits] = flops.flops_per_step(config)
  head = 6 * config.train.batch_size * flops.macs_per_head(config)
  assert steps['ilsd'] - steps['none'] == head
  assert steps['all'] - steps['none'] == (config.model.max_loops - 1) * head
