"""Parallel decoding: counts, known tokens, guidance, one compilation."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.samplers import build_sampler, guided_steps, masked
from tests.conftest import tiny_config
from tests.helpers import init_masked, masked_config

WHOLE = np.array([0.0, 1.0], np.float32)


@pytest.fixture(scope='module')
def decoder():
  """(sampler of 5 steps, parameters, jitted trajectory)."""
  config = masked_config(tiny_config())
  config.sample.num_steps = 5
  model, params = init_masked(config)
  sampler = build_sampler(config, model)
  return sampler, params, jax.jit(sampler.trajectory)


def draw(decoder, labels=(0, 1, 2, 3), loops=2, guidance=1.0, key=3, **kwargs):
  """Every step, [5, b, 4, 4], of the fixture or of another sampler."""
  sampler, params, trajectory = decoder
  trajectory = trajectory or jax.jit(sampler.trajectory)
  steps = trajectory(
    params,
    jax.random.key(key),
    np.array(labels, np.int32),
    np.broadcast_to(np.int32(loops), (5,)),
    np.float32(guidance),
    kwargs.pop('interval', WHOLE),
    **kwargs,
  )
  return np.asarray(steps)


def changed(decoder, **fields):
  sampler, params, _ = decoder
  return dataclasses.replace(sampler, **fields), params, None


def test_masked_tokens_follow_the_schedule(decoder):
  steps = draw(decoder)
  mask = decoder[0].vocabulary.mask_id
  left = (steps == mask).sum((2, 3))
  want = [int(16 * np.cos(np.pi / 2 * (k + 1) / 5)) for k in range(4)] + [0]
  assert want == [15, 12, 9, 4, 0]
  np.testing.assert_array_equal(left, np.array(want)[:, None].repeat(4, 1))
  assert steps[-1].min() >= 0 and steps[-1].max() < 16


def test_a_decided_token_stays(decoder):
  steps = draw(decoder)
  mask = decoder[0].vocabulary.mask_id
  for before, after in itertools.pairwise(steps):
    decided = before != mask
    np.testing.assert_array_equal(after[decided], before[decided])


def test_known_tokens_never_change(decoder):
  rng = np.random.default_rng(0)
  known = rng.integers(0, 16, (4, 4, 4)).astype(np.int32)
  known[rng.random((4, 4, 4)) < 0.6] = -1
  known[2] = 5  # Everything known.
  known[3, 1:] = 7
  known[3, 0] = [-1, 3, 3, 3]  # One to draw.
  steps = draw(decoder, known=known)
  for ids in steps:
    np.testing.assert_array_equal(ids[known >= 0], known[known >= 0])
  assert (steps[-1] < 16).all()
  unknown = (known < 0).sum((1, 2))
  mask = decoder[0].vocabulary.mask_id
  left = (steps == mask).sum((2, 3))
  n = unknown[0]
  want = [
    max(int(n * np.cos(np.pi / 2 * (k + 1) / 5)), 1) for k in range(4)
  ] + [0]
  np.testing.assert_array_equal(left[:, 0], want)
  np.testing.assert_array_equal(left[:, 3], [1, 1, 1, 1, 0])


def test_few_tokens_in_many_steps(decoder):
  """Never fewer than one left before the last step, never more than before."""
  known = np.full((1, 4, 4), 2, np.int32)
  known[0, 0, :3] = -1
  left = draw(decoder, labels=(1,), known=known)
  left = (left == decoder[0].vocabulary.mask_id).sum((1, 2, 3))
  np.testing.assert_array_equal(left, [2, 1, 1, 1, 0])


def test_the_key_decides_and_the_batch_does_not(decoder):
  steps = draw(decoder)
  np.testing.assert_array_equal(draw(decoder), steps)
  assert (draw(decoder, key=4) != steps).any()
  part = draw(decoder, labels=(2, 1), index=np.array([2, 1], np.int32))
  np.testing.assert_array_equal(part, steps[:, [2, 1]])


def test_guidance_of_one_is_the_conditional_model(decoder):
  sampler, params, _ = decoder
  ids = np.full((4, 16), sampler.vocabulary.mask_id, np.int32)
  labels = np.arange(4, dtype=np.int32)

  @jax.jit
  def logits(scale, labels):
    at = {'loops': jnp.int32(2), 'scale': scale, 'time': jnp.float32(0.5)}
    return sampler._logits(params, ids, labels, at, WHOLE)

  conditional = np.asarray(logits(1.0, labels))
  unconditional = np.asarray(logits(1.0, np.full(4, 4, np.int32)))
  assert np.abs(conditional - unconditional).max() > 0.01
  np.testing.assert_allclose(logits(0.0, labels), unconditional, atol=1e-5)
  np.testing.assert_allclose(
    logits(3.0, labels),
    unconditional + 3 * (conditional - unconditional),
    atol=1e-4,
  )
  assert conditional.shape == (4, 16, 16)  # Codes, and nothing else.


def test_guidance_acts_only_within_its_interval(decoder):
  off = draw(decoder)
  late = np.array([0.05, 0.1], np.float32)  # After the last step, at 0.2.
  outside = draw(decoder, guidance=9.0, interval=late)
  np.testing.assert_array_equal(off, outside)
  assert (draw(decoder, guidance=9.0) != off).any()


def test_guidance_ramps():
  ramp = masked.guidance_ramp
  np.testing.assert_array_equal(ramp('constant', 4), [1, 1, 1, 1])
  np.testing.assert_allclose(ramp('linear', 5), [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(
    ramp('powcos1', 4), [0, 0.14644661, 0.5, 0.85355339]
  )
  np.testing.assert_allclose(ramp('powcos2', 2), [0, 0.14644661], rtol=1e-6)


def test_what_changes_from_step_to_step(decoder):
  sampler = changed(decoder, guidance_schedule='linear')[0]
  got = sampler.schedule(jnp.int32(2), jnp.float32(3.0))
  left = np.array([0.8, 0.6, 0.4, 0.2, 0.0])  # 1 - (k + 1) / K
  np.testing.assert_allclose(got['temperature'], 0.5 + 0.8 * left, rtol=1e-6)
  np.testing.assert_allclose(got['noise'], 4.5 * left, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got['scale'], [1, 1.5, 2, 2.5, 3])
  np.testing.assert_allclose(got['time'], [1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6)
  np.testing.assert_array_equal(got['loops'], [2] * 5)


def test_noise_makes_the_choice_random(decoder):
  """So much of it drowns the model: what is kept first is any token."""
  loud = changed(decoder, choice_temperature=1e6)
  mask = decoder[0].vocabulary.mask_id
  steps = draw(loud, labels=[1] * 64).reshape(5, 64, 16)
  first = (steps[0] != mask).argmax(1)
  still = draw(changed(decoder, choice_temperature=0.0), labels=[1] * 64)
  calm = (still.reshape(5, 64, 16)[0] != mask).argmax(1)
  assert len(set(first)) > len(set(calm))
  assert len(set(first)) >= 12 and np.bincount(first).max() < 16


def test_a_ramp_is_not_constant_guidance(decoder):
  ramp = draw(changed(decoder, guidance_schedule='linear'), guidance=9.0)
  constant = draw(decoder, guidance=9.0)
  assert (ramp != constant).any()
  np.testing.assert_array_equal(ramp[0], draw(decoder)[0])  # Nothing at first.


def test_guided_steps_are_counted():
  config = masked_config(tiny_config())
  config.sample.num_steps, config.sample.guidance_schedule = 4, 'linear'
  # The ramp starts at nothing: the first step needs no second pass.
  np.testing.assert_array_equal(guided_steps(config, 3.0), [0, 1, 1, 1])
  assert not guided_steps(config, 1.0).any()
  config.sample.guidance_low = 0.6
  np.testing.assert_array_equal(guided_steps(config, 3.0), [0, 1, 0, 0])


def test_one_compilation_for_all_loops_and_scales(decoder):
  sampler, params, _ = decoder
  traces = []

  def count(*args):
    traces.append(1)
    return sampler(*args)

  jitted = jax.jit(count)
  schedules = [np.full(5, n) for n in range(1, 7)] + [np.arange(1, 6)]
  results = [
    jitted(
      params,
      jax.random.key(0),
      np.arange(4, dtype=np.int32),
      loops.astype(np.int32),
      np.float32(scale),
      WHOLE,
    )
    for loops in schedules
    for scale in (1.0, 2.5)
  ]
  assert len(traces) == 1
  assert (results[0] != results[10]).any()  # 1 loop and 6 loops.


def test_confidence_keeps_the_most_probable(decoder):
  """Without noise, what stays is what the model was most sure of."""
  still = changed(decoder, choice_temperature=0.0)
  kept = draw(still)[0].reshape(4, 16)
  sampler, params, _ = still
  mask = sampler.vocabulary.mask_id
  at = {'loops': 2, 'scale': jnp.float32(1), 'time': jnp.float32(1)}
  ids = np.full((4, 16), mask, np.int32)
  logits = sampler._logits(params, ids, np.arange(4), at, WHOLE)
  logits = logits / (0.5 + 0.8 * 0.8)  # Temperature of the first of 5 steps.
  for n in range(4):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), n), 0)
    drawn = jax.random.categorical(jax.random.split(key)[0], logits[n])
    sure = jax.nn.log_softmax(logits[n])[np.arange(16), drawn]
    place = int(np.argmax(sure))
    assert kept[n, place] == drawn[place]
    assert (np.delete(kept[n], place) == mask).all()


def test_halton_order():
  rank = masked.halton_rank((4, 4))
  assert sorted(rank) == list(range(16))
  # Radical inverses of 0, 1, 2, 3 in bases 2 and 3: (0, 0), (1/2, 1/3),
  # (1/4, 2/3), (3/4, 1/9), in quarters (0, 0), (2, 1), (1, 2), (3, 0).
  assert [rank.reshape(4, 4)[p] for p in ((0, 0), (2, 1), (1, 2), (3, 0))] == [
    0,
    1,
    2,
    3,
  ]
  assert sorted(masked.halton_rank((2, 4, 4))) == list(range(32))


def test_halton_decides_tokens_in_its_order(decoder):
  steps = draw(changed(decoder, order='halton')).reshape(5, 4, 16)
  mask = decoder[0].vocabulary.mask_id
  decided = (steps != mask).argmax(0)  # The step of each token.
  place = np.argsort(masked.halton_rank((4, 4)))
  starts = set()
  for row in decided:
    turns = row[place]  # In the order, begun anywhere.
    begun = [n for n in range(16) if (np.diff(np.roll(turns, -n)) >= 0).all()]
    assert begun
    starts.add(begun[0])
  assert len(starts) > 1
