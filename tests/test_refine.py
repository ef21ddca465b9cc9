"""Draft and refine: which tokens are drawn again, and which never."""

import types

import jax
import numpy as np
import pytest

from elt_jax.mesh import build_mesh
from elt_jax.samplers import refine
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.refine import Refine, least_confident
from tests.conftest import tiny_config
from tests.helpers import init_masked, masked_config


def test_the_least_confident_are_drawn_again():
  tokens = np.arange(8).reshape(2, 2, 2)
  log_p = -np.array([[[1.0, 4], [3, 2]], [[9, 0], [0, 0]]])
  fixed = np.zeros((2, 2, 2), bool)
  fixed[1, 0, 0] = True  # The least confident of all, but given.
  keep = least_confident(tokens, log_p, fixed, 0.5)
  np.testing.assert_array_equal(keep[0], [[0, -1], [-1, 3]])
  assert keep[1, 0, 0] == 4
  assert (keep[1] < 0).sum() == 2  # Half of three, rounded to even.


def test_at_least_one_and_never_what_is_given():
  tokens, log_p = np.zeros((2, 4), int), np.zeros((2, 4))
  fixed = np.array([[True] * 4, [False] * 4])
  keep = least_confident(tokens, log_p, fixed, 0.01)
  assert (keep[0] == 0).all() and (keep[1] < 0).sum() == 1
  assert (least_confident(tokens, log_p, ~fixed, 1.0)[0] < 0).all()


@pytest.fixture(scope='module')
def drawing():
  config = masked_config(tiny_config())
  model, params = init_masked(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  tokenizer = types.SimpleNamespace(
    grid=(4, 4), config=config, decode=lambda tokens: tokens
  )
  return Draw(config, model, mesh, 4, tokenizer), params


def test_a_round_changes_its_share_at_most(drawing):
  draw, params = drawing
  labels = np.arange(6) % 4
  draft = draw(params, labels, 1, seed=0)
  one = Refine(rounds=1, share=0.25, steps=2, loops=3)
  refined = draw.sample(params, labels, 1, seed=0, refined=one)
  changed = (refined.samples != draft).sum((1, 2))
  assert changed.max() <= 4 and changed.sum() > 0
  assert refined.samples.min() >= 0 and refined.samples.max() < 16
  # The draft of four steps, then a round of two.
  runs = [spent.loops[:, 0].tolist() for spent in refined.spent]
  assert runs == [[1, 1, 1, 1], [3, 3]]
  more = Refine(rounds=3, share=0.25, steps=2, loops=3)
  more = draw.sample(params, labels, 1, seed=0, refined=more)
  assert len(more.spent) == 4
  assert (more.samples != refined.samples).any()
  again = draw.sample(params, labels, 1, seed=0, refined=one)
  np.testing.assert_array_equal(again.samples, refined.samples)


def test_given_tokens_stay(drawing):
  draw, params = drawing
  known = np.full((4, 4, 4), -1)
  known[:, 1:3] = 7
  how = Refine(rounds=2, share=1.0, steps=2, loops=1)
  out = draw(params, np.arange(4), 2, seed=1, known=known, refined=how)
  np.testing.assert_array_equal(out[:, 1:3], 7)


def test_forms(config):
  config.sample.num_steps = 12
  assert refine.parse('rounds=2:share=0.5:steps=3:loops=1', config) == Refine(
    2, 0.5, 3, 1
  )
  assert refine.parse('share=0.2', config) == Refine(1, 0.2, 4, 3)
  for wrong in ('rounds=0', 'share=0', 'share=1.5', 'steps=1.5', 'loops=0'):
    with pytest.raises(ValueError, match='must be integers of at least 1, and'):
      refine.parse(wrong, config)
  with pytest.raises(ValueError, match="got 'round=2'"):
    refine.parse('round=2', config)


def test_refinement_is_for_masked_models(config):
  from tests.helpers import init

  model, params, _ = init(config)
  mesh = build_mesh({'data': 1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  draw = Draw(config, model, mesh, 4)
  with pytest.raises(ValueError, match='is for masked models'):
    draw(params, [0], 1, seed=0, refined=Refine(1, 0.3, 1, 1))
