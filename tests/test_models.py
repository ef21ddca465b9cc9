"""Shapes, parameters and the invariants of the looped transformer."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax import flops
from elt_jax.models import build_model, layers
from tests.conftest import tiny_config
from tests.helpers import abstract_params, apply, init, make_inputs, noisy


def two_layers():
  config = tiny_config()
  config.model.num_layers = 2
  return config


@pytest.fixture
def config():
  return two_layers()


def test_at_initialisation_all_loops_agree(config):
  model, params, inputs = init(config)
  # The head is zero too: give it values, so that agreement means something.
  params['head'] = noisy(params['head'])
  out = [apply(model, params, inputs, num_loops=n)[0] for n in (1, 2, 5)]
  assert np.abs(out[0]).max() > 1e-3
  np.testing.assert_array_equal(out[0], out[1])
  np.testing.assert_array_equal(out[0], out[2])


def test_away_from_initialisation_loops_differ_and_static_equals_dynamic(
  config,
):
  model, params, inputs = init(config)
  params = noisy(params)
  one, _ = apply(model, params, inputs, num_loops=1)
  two, exit_one = apply(model, params, inputs, num_loops=2, exit_loop=1)
  traced, traced_exit = apply(
    model, params, inputs, num_loops=jnp.int32(2), exit_loop=jnp.int32(1)
  )
  assert np.abs(one - two).max() > 1e-3
  np.testing.assert_allclose(exit_one, one, atol=1e-5)
  np.testing.assert_allclose(traced, two, atol=1e-5)
  np.testing.assert_allclose(traced_exit, one, atol=1e-5)


def layer_params(config):
  params = abstract_params(config)
  return flops.count_params(params['layers']), flops.count_params(params)


def test_parameters_do_not_depend_on_the_loops(config):
  counts = []
  for loops in (2, 6):
    config.model.max_loops = loops
    counts.append(layer_params(config))
  assert counts[0] == counts[1]
  config.model.num_layers = 4
  assert layer_params(config)[0] == 2 * counts[0][0]


def test_layer_parameters_follow_the_formula(config):
  d = config.model.width
  kernels = 4 * d * d + 2 * 4 * d * d + 6 * d * d
  biases = 3 * d + d + 4 * d + d + 6 * d
  expected = config.model.num_layers * (kernels + biases)
  assert layer_params(config)[0] == expected


@functools.cache
def gradients(**changes):
  """Of one loss at the same parameters, through the model with `changes`."""
  model, params, inputs = init(two_layers())
  model = dataclasses.replace(model, **changes)

  def loss(params):
    out, out_exit = model.apply(params, *inputs, num_loops=2, exit_loop=1)
    return jnp.mean(out**2) + jnp.mean(out_exit**2)

  return jax.jit(jax.grad(loss))(noisy(params))


@pytest.mark.parametrize(
  'remat,scan_layers,unroll',
  [
    ('none', True, False),
    ('layer', False, True),
    ('loop', True, False),
    ('dots', False, False),
  ],
)
def test_remat_scan_and_unroll_change_no_number(remat, scan_layers, unroll):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
    gradients(),
    gradients(remat=remat, scan_layers=scan_layers, unroll_loops=unroll),
  )


@pytest.mark.parametrize('loops,kept', [(1, True), (2, False)])
def test_one_loop_recomputes_too(loops, kept):
  """Its scan is unrolled by XLA, which would undo it but for a barrier."""
  model, params, inputs = init(two_layers())
  changes = {'remat': 'layer', 'scan_layers': False, 'max_loops': loops}
  model = dataclasses.replace(model, unroll_loops=False, **changes)
  loss = lambda p: jnp.mean(model.apply(p, *inputs, num_loops=loops)[0] ** 2)
  text = jax.jit(jax.grad(loss)).lower(params).as_text()
  assert ('optimization_barrier' in text) == kept


@pytest.mark.parametrize(
  'option', ['input_injection', 'loop_embedding', 'residual_scale']
)
def test_options_are_off_by_default_and_change_the_output(config, option):
  model, params, inputs = init(config)
  base, _ = apply(model, noisy(params), inputs, num_loops=2)
  config.model[option] = True
  model, params, inputs = init(config)
  changed, _ = apply(model, noisy(params), inputs, num_loops=2)
  assert np.abs(base - changed).max() > 1e-3


def test_time_scale_is_that_of_the_embedded_time(config):
  model, params, (x, t, labels) = init(config)
  params = noisy(params)
  base, _ = apply(model, params, (x, t, labels), num_loops=2)
  config.model.time_scale = 250.0
  slow = build_model(config)
  got, _ = apply(slow, params, (x, 4 * t, labels), num_loops=2)
  np.testing.assert_allclose(got, base, atol=1e-5)
  other, _ = apply(slow, params, (x, t, labels), num_loops=2)
  assert np.abs(other - base).max() > 1e-3


def test_loop_embedding_starts_as_the_plain_model(config):
  plain, params, inputs = init(config)
  config.model.loop_embedding = True
  model, with_loop, _ = init(config)
  params, loop = noisy(params), with_loop['loop']
  np.testing.assert_array_equal(
    apply(plain, params, inputs, num_loops=2)[0],
    apply(model, params | {'loop': loop}, inputs, num_loops=2)[0],
  )


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(config):
  model, params, inputs = init(config)
  params = noisy(params)
  config.model.dtype = 'bfloat16'
  half = build_model(config)

  def states(params):
    h, block, _ = half.bind(params, *inputs)
    return h, block(h, 0)

  assert {x.dtype.name for x in jax.eval_shape(states, params)} == {'bfloat16'}
  fine, coarse = (
    apply(m, params, inputs, num_loops=2)[0] for m in (model, half)
  )
  assert coarse.dtype == jnp.float32
  np.testing.assert_allclose(fine, coarse, atol=0.05 * np.abs(fine).max())
  dtypes = {x.dtype.name for x in jax.tree.leaves(abstract_params(config))}
  assert dtypes == {'float32'}


def test_video_is_the_same_code_path(config):
  config.data.num_frames = 4
  config.model.patch_frames = 2
  model, params, inputs = init(config)
  out, _ = apply(model, noisy(params), inputs, num_loops=2)
  assert out.shape == inputs[0].shape == (3, 4, 8, 8, 1)
  h = jax.eval_shape(lambda p: model.bind(p, *inputs)[0], params)
  assert h.shape == (3, 2 * 2 * 2, config.model.width)


def test_wrong_image_size_raises(config):
  model, (_, t, labels) = build_model(config), make_inputs(config)
  with pytest.raises(ValueError, match=r'\(1, 8, 8\), got \(1, 12, 8\)'):
    jax.eval_shape(
      lambda p: model.bind(p, jnp.zeros((3, 12, 8, 1)), t, labels)[0],
      abstract_params(config),
    )


def test_unpatchify_inverts_patchify():
  x = np.random.default_rng(0).standard_normal((2, 4, 6, 8, 3))
  tokens = layers.patchify(x, (2, 3, 2))
  assert tokens.shape == (2, 2 * 2 * 4, 2 * 3 * 2 * 3)
  # The first token is the first 2 x 3 x 2 block.
  np.testing.assert_array_equal(tokens[0, 0], x[0, :2, :3, :2].reshape(-1))
  np.testing.assert_array_equal(
    layers.unpatchify(tokens, (2, 2, 4), (2, 3, 2)), x
  )


def test_image_positions_are_those_of_dit():
  """DiT: half the channels for the column, half for the row, [sin, cos]."""
  width, side = 8, 3
  table = layers.position_table((1, side, side), width)
  omega = 1 / 10_000 ** (np.arange(width // 4) / (width // 4))
  for row in range(side):
    for column in range(side):
      want = np.concatenate(
        [
          np.sin(column * omega),
          np.cos(column * omega),
          np.sin(row * omega),
          np.cos(row * omega),
        ]
      )
      np.testing.assert_allclose(table[row * side + column], want, atol=1e-6)


def test_video_positions_tell_every_token_apart():
  table = layers.position_table((3, 4, 5), 32)
  assert table.shape == (60, 32)
  distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
  assert distances[~np.eye(60, dtype=bool)].min() > 0.1


def test_attention_equals_a_numpy_reference():
  b, s, k, hd = 2, 5, 2, 4
  module = layers.Attention(k)
  h = np.random.default_rng(0).standard_normal((b, s, k * hd), np.float32)
  p = nn.unbox(jax.jit(module.init)(jax.random.key(1), h))
  w, out = p['params']['qkv']['kernel'], p['params']['out']['kernel']
  q, key, v = (np.einsum('bsd,dkh->bskh', h, w[:, i]) for i in range(3))
  logits = np.einsum('bqkh,bpkh->bkqp', q, key) / np.sqrt(hd)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  mixed = np.einsum('bkqp,bpkh->bqkh', weights, v)
  want = np.einsum('bqkh,khd->bqd', mixed, out)
  np.testing.assert_allclose(jax.jit(module.apply)(p, h), want, atol=1e-5)
