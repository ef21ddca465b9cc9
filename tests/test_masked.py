"""The masked objective: masks, cross-entropy, and what each term sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.models import build_model, layers
from elt_jax.objectives import build_objective, masked
from tests.helpers import init_masked, loss_at, make_tokens, masked_config


@pytest.mark.parametrize(
  'schedule,at_half',
  [
    ('cosine', np.sqrt(0.5)),
    ('arccos', 2 / 3),
    ('linear', 0.5),
    ('pow2', 0.75),
    ('pow0.5', 1 - np.sqrt(0.5)),
  ],
)
def test_mask_schedules(schedule, at_half):
  got = masked.mask_ratio(schedule, np.array([0.0, 0.5, 1.0]), np)
  np.testing.assert_allclose(got, [1, at_half, 0], atol=1e-7)


@pytest.mark.parametrize('schedule', ['sine', 'pow', 'powx'])
def test_unknown_schedules(schedule):
  with pytest.raises(ValueError, match=f"got '{schedule}'"):
    masked.mask_ratio(schedule, 0.5)


def test_lowest_is_exact_and_breaks_ties_by_position():
  scores = np.array([[3.0, 1, 1, 2], [0, 0, 0, 0], [5, 4, 3, 2]])
  got = masked.lowest(scores, np.array([2, 3, 0]))
  np.testing.assert_array_equal(got, [[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])


def test_cross_entropies_by_hand():
  rng = np.random.default_rng(0)
  logits, teacher = rng.normal(size=(2, 3, 5)).astype(np.float32)
  codes = np.array([0, 4, 2])
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  target = 0.9 * np.eye(5)[codes] + 0.1 / 5
  np.testing.assert_allclose(
    masked.cross_entropy(logits, codes, 0.1), -(target * log_p).sum(-1), 1e-5
  )
  p = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
  np.testing.assert_allclose(
    masked.soft_cross_entropy(logits, teacher), -(p * log_p).sum(-1), 1e-5
  )


def test_reductions_by_hand():
  loss = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
  weight = np.array([[1.0, 0, 0, 0], [0, 1, 1, 1]])
  assert masked.weighted_mean(loss, weight, 'sample') == (1 + 7) / 2
  assert masked.weighted_mean(loss, weight, 'batch') == (1 + 6 + 7 + 8) / 4


@pytest.fixture(scope='module')
def objective():
  from tests.conftest import tiny_config

  config = masked_config(tiny_config())
  model, params = init_masked(config)
  return build_objective(config, model), params, make_tokens(config)


def ids_seen(objective, params, batch, step=0):
  """The sequences that the model is given."""
  seen = []

  class Spy:
    def __getattr__(self, name):
      return getattr(objective.model, name)

    def run(self, loops, params, ids, keys):
      seen.append(ids)
      return objective.model.run(loops, params, ids, keys=keys)

  spied = dataclasses.replace(objective, model=Spy())

  def run(params, batch):
    spied.loss(params, batch, jax.random.key(11), step)
    return seen[-1]

  return np.asarray(jax.jit(run)(params, batch))


def test_masks_are_of_the_schedule_and_leave_the_rest(objective):
  objective, params, batch = objective
  big = {k: np.resize(v, (400, *v.shape[1:])) for k, v in batch.items()}
  big['index'] = np.arange(400, dtype=np.int32)
  ids = ids_seen(objective, params, big)
  v = objective.vocabulary
  hidden = ids[:, 1:] == v.mask_id
  codes = big['tokens'].reshape(400, -1)
  np.testing.assert_array_equal(ids[:, 1:][~hidden], codes[~hidden])
  counts = hidden.sum(1)
  assert counts.min() >= 1 and counts.max() <= 16
  # floor(16 cos(pi u / 2)) for uniform u, at least one: mean over u.
  u = (np.arange(100_000) + 0.5) / 100_000
  mean = np.maximum(np.floor(16 * np.cos(np.pi / 2 * u)), 1).mean()
  assert abs(counts.mean() - mean) < 4 * counts.std() / 20
  # Every position is hidden as often as any other.
  share = hidden.mean(0)
  assert abs(share - share.mean()).max() < 5 * np.sqrt(0.25 / 400)
  dropped = ids[:, 0] == v.class_ids(np.int32(4))
  assert 0.03 < dropped.mean() < 0.2  # label_dropout = 0.1
  np.testing.assert_array_equal(
    ids[:, 0][~dropped], v.class_ids(big['label'])[~dropped]
  )


def test_conditions_stand_in_for_masks(objective):
  """COMMIT: of the tasks or of none, at hidden positions alone."""
  objective, params, batch = objective
  n = 600
  big = {k: np.resize(v, (n, *v.shape[1:])) for k, v in batch.items()}
  big['index'] = np.arange(n, dtype=np.int32)
  plain = ids_seen(objective, params, big)[:, 1:]
  hidden = plain == objective.vocabulary.mask_id
  # Task 0 gives code 1 in the upper half, task 1 code 2 in the left half.
  conditions = np.full((n, 2, 4, 4), -1, np.int32)
  conditions[:, 0, :2], conditions[:, 1, :, :2] = 1, 2
  big['conditions'] = conditions
  committed = dataclasses.replace(objective, commit=True)
  ids = ids_seen(committed, params, big)[:, 1:]
  # The same positions are hidden; the others show their tokens.
  np.testing.assert_array_equal(ids[~hidden], plain[~hidden])
  every = np.concatenate([conditions, np.full((n, 1, 4, 4), -1)], 1)
  seen = np.where(every < 0, objective.vocabulary.mask_id, every)
  seen = seen.reshape(n, 3, 16)
  fits = ((ids[:, None] == seen) | ~hidden[:, None]).all(-1)
  assert fits.any(1).all()
  only = fits[fits.sum(1) == 1].mean(0)  # What tells the tasks apart.
  assert abs(only - 1 / 3).max() < 0.1
  # What it is to predict is the clip as it is.
  loss, _ = loss_at(committed, params, big, 0)
  big['conditions'] = np.full_like(conditions, -1)
  without, _ = loss_at(committed, params, big, 0)
  np.testing.assert_allclose(
    without, loss_at(objective, params, big, 0)[0], rtol=1e-6
  )
  assert abs(loss - without) > 1e-4


def test_masks_differ_from_step_to_step(objective):
  one, two = (ids_seen(*objective, step=step) for step in (0, 1))
  assert (one != two).any()


def test_loss_equals_a_hand_computation(objective):
  objective, params, batch = objective
  step = 5
  loss, terms = loss_at(objective, params, batch, step)
  ids = ids_seen(objective, params, batch, step)
  hidden = ids[:, 1:] == objective.vocabulary.mask_id
  exit_loop = int(terms['exit_loop'])
  forward = jax.jit(
    lambda p, x: objective.model.apply(p, x, num_loops=3, exit_loop=exit_loop)
  )
  logits = [np.asarray(x, np.float64)[:, 1:] for x in forward(params, ids)]
  log_p = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits]
  codes = batch['tokens'].reshape(8, -1)
  v = logits[0].shape[-1]
  target = 0.9 * np.eye(v)[codes] + 0.1 / v

  def mean(target, log_p):
    ce = -(target * log_p).sum(-1)
    return ((ce * hidden).sum(1) / hidden.sum(1)).mean()

  want = {
    'gt_final': mean(target, log_p[0]),
    'gt_exit': mean(target, log_p[1]),
    'distill': mean(np.exp(log_p[0]), log_p[1]),
  }
  for name, value in want.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5)
  weight = 1 - step / 19
  np.testing.assert_allclose(
    loss,
    want['gt_final']
    + weight * want['gt_exit']
    + (1 - weight) * want['distill'],
    rtol=1e-5,
  )


def test_known_tokens_count_as_they_are_told_to(objective):
  objective, params, batch = objective
  terms = {}
  for weight in (0.0, 0.5, 1.0):
    weighted = dataclasses.replace(
      objective, unmasked_weight=weight, reduction='batch', label_smoothing=0.0
    )
    terms[weight] = float(loss_at(weighted, params, batch, 0)[1]['gt_final'])
  ids = ids_seen(objective, params, batch)
  hidden = (ids[:, 1:] == objective.vocabulary.mask_id).mean()
  known = (terms[1.0] - hidden * terms[0.0]) / (1 - hidden)
  want = (hidden * terms[0.0] + 0.5 * (1 - hidden) * known) / (
    hidden + 0.5 * (1 - hidden)
  )
  np.testing.assert_allclose(terms[0.5], want, rtol=1e-4)


def test_an_example_depends_on_its_place_and_not_on_the_batch(objective):
  objective, params, batch = objective
  order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
  moved = {name: value[order] for name, value in batch.items()}
  ids = ids_seen(objective, params, batch)
  np.testing.assert_array_equal(ids_seen(objective, params, moved), ids[order])


def test_without_labels_the_class_is_not_seen(objective):
  objective, params, batch = objective
  blind = dataclasses.replace(objective, label_dropout=1.0)
  other = batch | {'label': (batch['label'] + 1) % 4}
  losses = [loss_at(blind, params, b, 0)[0] for b in (batch, other)]
  assert losses[0] == losses[1]
  losses = [loss_at(objective, params, b, 0)[0] for b in (batch, other)]
  assert losses[0] != losses[1]


def test_distillation_is_least_where_the_student_is_the_teacher():
  teacher = jnp.arange(30.0).reshape(2, 3, 5) % 7
  grad = jax.grad(lambda s: masked.soft_cross_entropy(s, teacher).sum())
  np.testing.assert_allclose(grad(teacher), 0, atol=1e-6)
  assert np.abs(grad(teacher + jnp.arange(5.0))).max() > 0.1


def test_dropout_of_almost_nothing_changes_nothing(config):
  """The route with dropout is the route without, but for the masks."""
  config = masked_config(config)
  _, params = init_masked(config)
  ids = np.arange(34, dtype=np.int32).reshape(2, 17) % 22
  keys = jax.random.split(jax.random.key(0), 2)
  outputs = []
  for rate, drawn in ((0.0, None), (1e-7, keys)):
    config.model.dropout = rate
    model = build_model(config)

    @jax.jit
    def logits(params, model=model, drawn=drawn):
      h, block, head = model.bind(params, ids, keys=drawn)
      return head(block(h, jnp.int32(0)))

    outputs.append(logits(params))
  np.testing.assert_allclose(*outputs, atol=1e-4)


def test_pre_norm_leaves_the_last_norm_to_the_head(config):
  config = masked_config(config)
  config.model.norm = 'pre'
  model, params = init_masked(config)
  ids = np.arange(34, dtype=np.int32).reshape(2, 17) % 22

  @jax.jit
  def parts(params):
    h, block, head = model.bind(params, ids)
    one = block(h, jnp.int32(0))
    return h, one, head(one), head(3 * one + 1)

  h, one, logits, scaled = map(np.asarray, parts(params))
  # The state is not normed, the head does not see its size and mean.
  assert np.abs(one.std(-1) - h.std(-1)).max() > 1e-3
  np.testing.assert_allclose(logits, scaled, atol=1e-3)


def test_dropout_keeps_the_mean_and_is_drawn_per_example():
  keys = jax.random.split(jax.random.key(0), 4)
  x = jnp.ones((4, 50, 40))
  y = np.asarray(layers.dropout(x, 0.25, keys, 0))
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert abs(y.mean() - 1) < 0.02
  np.testing.assert_array_equal(
    layers.dropout(x[:1], 0.25, keys[2:3], 0)[0], y[2]
  )
  assert (np.asarray(layers.dropout(x, 0.25, keys, 1)) != y).any()
  assert layers.dropout(x, 0.25, None, 0) is x


@pytest.mark.parametrize('scan_layers', [False, True])
def test_dropout_differs_between_loops_and_layers(config, scan_layers):
  """A model whose blocks add a constant shows every mask it draws."""
  config = masked_config(config)
  config.model.update(
    {
      'num_layers': 2,
      'dropout': 0.5,
      'norm': 'pre',
      'scan_layers': scan_layers,
    }
  )
  model, params = init_masked(config)
  params = jax.tree.map(jnp.zeros_like, params)
  params['layers']['mlp']['out']['bias'] += 1.0
  ids = jnp.zeros((2, 17), jnp.int32)
  keys = jax.random.split(jax.random.key(1), 2)

  def states(params, keys):
    h, block, _ = model.bind(params, ids, keys=keys)
    one = block(h, jnp.int32(0))
    return h, one, block(one, jnp.int32(1))

  h, one, two = jax.jit(states)(params, keys)
  first, second = np.asarray(one - h), np.asarray(two - one)
  # Two layers, each adding 0 or 2.
  assert set(np.unique(first)) == {0.0, 2.0, 4.0}
  assert (first != second).any()
  again = jax.jit(states)(params, keys)
  np.testing.assert_array_equal(again[2], two)
  off, _, without = jax.jit(lambda p: states(p, None))(params)
  np.testing.assert_allclose(without - off, 4.0)
