"""Parallel decoding: counts, known tokens, guidance, one compilation."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from elt_jax.samplers import build_sampler, masked
from elt_jax.samplers.plan import build_plan
from tests.conftest import tiny_config
from tests.helpers import init_masked, masked_config


def five_steps():
  config = masked_config(tiny_config())
  config.sample.num_steps = 5
  return config


@pytest.fixture(scope='module')
def decoder():
  """(sampler of 5 steps, parameters, jitted trajectory)."""
  config = five_steps()
  model, params = init_masked(config)
  sampler = build_sampler(config, model)
  return sampler, params, jax.jit(sampler.trajectory)


def draw(decoder, labels=(0, 1, 2, 3), loops=2, key=3, given=None, **changes):
  """Every step, [5, b, 4, 4], of the fixture or of another sampler."""
  sampler, params, trajectory = decoder
  trajectory = trajectory or jax.jit(sampler.trajectory)
  steps = trajectory(
    params,
    jax.random.key(key),
    np.array(labels, np.int32),
    build_plan(five_steps(), loops, **{'guidance': 1.0} | changes),
    **given or {},
  )
  return np.asarray(steps.ids).reshape(5, -1, 4, 4)


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
  steps = draw(decoder, given={'known': known})
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


def test_a_condition_is_seen_until_it_is_drawn(decoder):
  """COMMIT: it stands where a mask would, and everything is drawn."""
  condition = np.full((4, 4, 4), -1, np.int32)
  condition[:, :2] = 7
  given = {'condition': condition}
  steps = draw(decoder, given=given)
  sampler, params, _ = decoder
  plan = build_plan(five_steps(), 2, guidance=1.0)
  labels = np.arange(4, dtype=np.int32)
  states = jax.jit(sampler.trajectory)(
    params, jax.random.key(3), labels, plan, **given
  )
  undecided = np.asarray(states.undecided).reshape(steps.shape)
  left = undecided.sum((2, 3))
  np.testing.assert_array_equal(left[:, 0], [15, 12, 9, 4, 0])
  mask = sampler.vocabulary.mask_id
  blank = np.broadcast_to(np.where(condition < 0, mask, 7), steps.shape)
  np.testing.assert_array_equal(steps[undecided], blank[undecided])
  assert steps[-1].max() < 16 and (steps[-1][:, :2] != 7).any()
  # The model sees it; without one, all is as if there were none to give.
  assert (steps[-1] != draw(decoder)[-1]).any()
  none = {'condition': np.full_like(condition, -1)}
  np.testing.assert_array_equal(draw(decoder, given=none), draw(decoder))


def test_known_tokens_stay_beside_a_condition(decoder):
  known = np.full((4, 4, 4), -1, np.int32)
  known[:, 0] = 3
  condition = np.full((4, 4, 4), 5, np.int32)
  steps = draw(decoder, given={'known': known, 'condition': condition})
  assert (steps[:, :, 0] == 3).all()
  assert (steps != decoder[0].vocabulary.mask_id).all()
  assert (steps[0, :, 1:] == 5).sum() >= 4 * 11


def test_few_tokens_in_many_steps(decoder):
  """Never fewer than one left before the last step, never more than before."""
  known = np.full((1, 4, 4), 2, np.int32)
  known[0, 0, :3] = -1
  left = draw(decoder, labels=(1,), given={'known': known})
  left = (left == decoder[0].vocabulary.mask_id).sum((1, 2, 3))
  np.testing.assert_array_equal(left, [2, 1, 1, 1, 0])


def test_the_key_decides_and_the_batch_does_not(decoder):
  steps = draw(decoder)
  np.testing.assert_array_equal(draw(decoder), steps)
  assert (draw(decoder, key=4) != steps).any()
  index = np.array([2, 1], np.int32)
  part = draw(decoder, labels=(2, 1), given={'index': index})
  np.testing.assert_array_equal(part, steps[:, [2, 1]])


def test_guidance_acts_only_within_its_interval(decoder):
  off = draw(decoder)
  late = {'guidance_low': 0.05, 'guidance_high': 0.1}  # The last is at 0.2.
  outside = draw(decoder, guidance=9.0, **late)
  np.testing.assert_array_equal(off, outside)
  assert (draw(decoder, guidance=9.0) != off).any()


def test_what_changes_from_step_to_step(decoder):
  got = decoder[0].schedule()
  left = np.array([0.8, 0.6, 0.4, 0.2, 0.0])  # 1 - (k + 1) / K
  np.testing.assert_allclose(got['temperature'], 0.5 + 0.8 * left, rtol=1e-6)
  np.testing.assert_allclose(got['noise'], 4.5 * left, rtol=1e-5, atol=1e-6)


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
  ramp = draw(decoder, guidance=9.0, guidance_schedule='linear')
  constant = draw(decoder, guidance=9.0)
  assert (ramp != constant).any()
  np.testing.assert_array_equal(ramp[0], draw(decoder)[0])  # Nothing at first.


def test_confidence_keeps_the_most_probable(decoder):
  """Without noise, what stays is what the model was most sure of."""
  still = changed(decoder, choice_temperature=0.0)
  kept = draw(still)[0].reshape(4, 16)
  sampler, params, _ = still
  mask = sampler.vocabulary.mask_id
  ids = np.full((4, 16), mask, np.int32)
  sequence = sampler.vocabulary.sequence(ids, np.arange(4))
  logits, _ = sampler.model.apply(params, sequence, num_loops=2)
  logits = logits[:, 1:, :16]
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
