"""Masked models and tokenizers in the one train step, on any devices."""

import jax
import numpy as np
import pytest

from elt_jax import flops
from elt_jax.mesh import build_mesh
from elt_jax.samplers.draw import Draw
from elt_jax.sharding import batch_sharding
from tests.conftest import tiny_config
from tests.helpers import (
  Stack,
  init_masked,
  make_batch,
  make_tokens,
  masked_config,
)


def masked():
  config = masked_config(tiny_config())
  config.model.update({'dropout': 0.1, 'num_layers': 1, 'max_loops': 2})
  return config


def tokenizer():
  config = masked_config(tiny_config())
  config.model.family, config.data.source = 'tokenizer', 'synthetic'
  config.data.image_size = 8
  config.tokenizer.update(
    {
      'channel_multipliers': (1,),
      'adversarial': 0.1,
      'discriminator_filters': 8,
      'discriminator_multipliers': (1,),
      'restart_every_steps': 2,
    }
  )
  return config


@pytest.mark.parametrize(
  'make,batch',
  [
    (masked, make_tokens),
    pytest.param(tokenizer, make_batch, marks=pytest.mark.slow),
  ],
)
def test_sharded_steps_equal_the_step_on_one_device(make, batch):
  results = []
  for shape in (
    {'data': 1, 'fsdp': 1, 'tensor': 1},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
  ):
    config = make()
    stack = Stack(config, shape)
    state, step = stack.create(), stack.step()
    for seed in range(2):
      examples = batch(config, 16, seed)
      examples = jax.device_put(examples, batch_sharding(stack.mesh))
      state, metrics = step(state, examples)
    results.append(jax.device_get((state, metrics)))
  (want, want_metrics), (got, got_metrics) = results
  np.testing.assert_allclose(
    want_metrics['loss'], got_metrics['loss'], rtol=1e-5
  )
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  jax.tree.map(compare, want.params, got.params)
  jax.tree.map(compare, want.ema, got.ema)


def test_the_step_restarts_codes():
  config = tokenizer()
  config.tokenizer.update({'adversarial': 0.0, 'restart_every_steps': 1})
  stack = Stack(config)
  state, step = stack.create(), stack.step()
  # Far from everything, so never used, and moved by no gradient.
  codebook = np.asarray(state.params['quantizer']['codebook']).copy()
  codebook[1:] += 1e3
  state.params['quantizer']['codebook'] = jax.numpy.asarray(codebook)
  batch = jax.device_put(make_batch(config, 16), batch_sharding(stack.mesh))
  state, _ = step(state, batch)
  assert np.abs(state.params['quantizer']['codebook']).max() < 100


def test_samples_do_not_depend_on_the_devices():
  config = masked()
  model, params = init_masked(config)
  draws = []
  for count in (1, 8):
    mesh = build_mesh(
      {'data': count, 'fsdp': 1, 'tensor': 1}, jax.devices()[:count]
    )
    draw = Draw(config, model, mesh, batch_size=8)
    draws.append(draw(params, np.arange(8) % 4, [1, 2, 3, 3], seed=5))
  np.testing.assert_array_equal(*draws)
  assert draws[0].shape == (8, 4, 4) and draws[0].max() < 16


@pytest.mark.parametrize(
  'variant,millions,gmacs',
  [
    ('L_8Nx3L', 101, 80.5),
    ('L_12Nx2L', 152, 80.5),
    ('XL_7Nx4L', 111, 118.4),
    ('L_24N', 303, 80.5),
    ('XL_28N', 446, 118.4),
  ],
)
def test_the_papers_models(variant, millions, gmacs):
  """ELT, arXiv 2604.09168, Table 1: it counts transformer layers alone.

  Its figures are rounded, 152 and 111 by more than half a million.
  """
  from configs import imagenet256_masked

  config = imagenet256_masked.get_config(variant)
  m, layers = config.model, Stack(config).abstract.params['layers']
  count = flops.count_params(layers)
  # Kernels; biases of 4 + 4 + 1 widths and two norms.
  assert count == m.num_layers * (12 * m.width**2 + 13 * m.width)
  np.testing.assert_allclose(count / 1e6, millions, rtol=6e-3)
  np.testing.assert_allclose(
    flops.paper_macs_per_pass(config, config.model.max_loops) / 1e9,
    gmacs,
    rtol=1e-3,
  )


def test_a_masked_pass_by_hand():
  config = masked()  # 17 tokens, width 16, 1 layer, 22 ids.
  block = 17 * (12 * 16**2 + 2 * 17 * 16)
  head = 17 * 16 * (16 + 22)
  assert flops.macs_per_pass(config, 3) == 3 * block + head
