"""The three terms, the student's exit, and the ablation switch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.objectives.ilsd import Problem, draw_exit_loop, gt_weight
from elt_jax.validation import validate
from tests.helpers import (
  apply,
  init_masked,
  loss_at,
  make_batch,
  make_objective,
  make_tokens,
  masked_config,
  objective_of,
)

KEY, STEPS = jax.random.key(11), 20


def test_exit_is_uniform_below_l_max_and_never_l_max():
  keys = jax.random.split(jax.random.key(0), 3000)
  exits = np.asarray(jax.vmap(lambda k: draw_exit_loop(k, 2, 6))(keys))
  counts = np.bincount(exits, minlength=7)
  assert counts[[0, 1, 6]].sum() == 0
  assert (np.abs(counts[2:6] - 750) < 100).all()


@pytest.mark.parametrize('low,high', [(0, 4), (4, 4), (5, 4)])
def test_exit_range_must_not_be_empty(low, high):
  with pytest.raises(ValueError, match='1 <= objective.min_loops < '):
    draw_exit_loop(KEY, low, high)


def test_gt_weight_falls_linearly_from_one_to_zero():
  weights = [float(gt_weight(jnp.int32(step), 5)) for step in range(6)]
  np.testing.assert_allclose(weights, [1, 0.75, 0.5, 0.25, 0, 0])


def test_terms_add_up_and_the_teacher_is_vanilla_looping(config):
  objective, params, batch = make_objective(config)
  loss, m = loss_at(objective, params, batch, 6)
  weight = 1 - 6 / (STEPS - 1)
  np.testing.assert_allclose(m['gt_weight'], weight, rtol=1e-6)
  np.testing.assert_allclose(
    loss,
    m['gt_final'] + weight * m['gt_exit'] + (1 - weight) * m['distill'],
    rtol=1e-6,
  )
  config.objective.exits = 'none'
  vanilla, _ = loss_at(objective_of(config), params, batch, 6)
  np.testing.assert_allclose(m['gt_final'], vanilla, rtol=1e-5)


def test_the_student_is_the_model_run_for_l_int_loops(config):
  objective, params, batch = make_objective(config)
  _, m = loss_at(objective, params, batch, 4)
  config.objective.exits = 'none'
  config.model.max_loops = int(m['exit_loop'])
  short, _ = loss_at(objective_of(config), params, batch, 4)
  np.testing.assert_allclose(m['gt_exit'], short, rtol=1e-5)


def test_the_teacher_gets_no_gradient_from_distillation(config):
  """The gradient of the distillation term is that of a student regressing
  onto a teacher computed beforehand, a constant."""
  objective, params, batch = make_objective(config)
  model = objective.model
  x = batch['image'].astype(np.float32) / 127.5 - 1
  inputs = (x, jnp.full(8, 0.5), batch['label'])
  mse = lambda student, teacher: jnp.mean((student - teacher) ** 2)

  problem = Problem(inputs, jnp.sum, mse, mse, KEY)

  def distill(params):
    _, m = objective.exit_loss(model, params, problem, jnp.int32(0))
    return m['distill'], m['exit_loop']

  grads, exit_loop = jax.jit(jax.grad(distill, has_aux=True))(params)
  exit_loop = int(exit_loop)
  teacher, _ = apply(model, params, inputs, num_loops=config.model.max_loops)

  def regress(params):
    return mse(model.apply(params, *inputs, num_loops=exit_loop)[0], teacher)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    grads,
    jax.jit(jax.grad(regress))(params),
  )


def test_at_lambda_one_ilsd_is_two_exit_deep_supervision(config):
  """With L_max = 2 both have the same two exits."""
  config.model.max_loops = 2
  objective, params, batch = make_objective(config)
  ilsd, _ = loss_at(objective, params, batch, 0)
  config.objective.exits = 'all'
  deep, _ = loss_at(objective_of(config), params, batch, 0)
  np.testing.assert_allclose(ilsd, deep, rtol=1e-5)


def test_deep_supervision_averages_the_earlier_exits(config):
  config.objective.exits = 'all'
  config.objective.min_loops = 2
  config.model.max_loops = 4
  objective, params, batch = make_objective(config)
  _, m = loss_at(objective, params, batch, 0)
  losses = []
  for loops in (2, 3, 4):
    config.objective.exits = 'none'
    config.model.max_loops = loops
    losses.append(float(loss_at(objective_of(config), params, batch, 0)[0]))
  np.testing.assert_allclose(m['gt_exit'], np.mean(losses[:2]), rtol=1e-5)
  np.testing.assert_allclose(m['gt_final'], losses[2], rtol=1e-5)


def test_one_compilation_serves_every_exit(config):
  config.model.max_loops = 6
  objective, params, batch = make_objective(config)
  traces = []

  @jax.jit
  def loss(step):
    traces.append(step)
    return objective.loss(params, batch, KEY, step)[1]['exit_loop']

  exits = {int(loss(jnp.int32(step))) for step in range(40)}
  assert exits == {1, 2, 3, 4, 5} and len(traces) == 1


def test_exit_loss_without_exits_reports_one_term(config):
  objective, params, batch = make_objective(config)
  vanilla = dataclasses.replace(
    objective,
    exit_loss=dataclasses.replace(objective.exit_loss, exits='none'),
  )
  _, m = loss_at(vanilla, params, batch, 0)
  assert set(m) == {'gt_final'}


@pytest.mark.parametrize('unroll', [False, True])
def test_a_random_depth_is_a_model_of_that_depth(config, unroll):
  """Drawn at every step from its range, above the student, in one program."""
  config.model.max_loops, config.model.unroll_loops = 4, unroll
  config.objective.randomize_max_loops = 2
  objective, params, batch = make_objective(config)
  terms = [loss_at(objective, params, batch, step)[1] for step in range(30)]
  depths = {int(m['depth']) for m in terms}
  assert depths == {2, 3, 4}
  assert all(1 <= m['exit_loop'] < m['depth'] for m in terms)
  for depth in depths:
    step = [int(m['depth']) for m in terms].index(depth)
    config.objective.update({'exits': 'none', 'randomize_max_loops': 0})
    for name, loops in (('gt_final', depth), ('gt_exit', None)):
      config.model.max_loops = loops or int(terms[step]['exit_loop'])
      alone, _ = loss_at(objective_of(config), params, batch, step)
      np.testing.assert_allclose(terms[step][name], alone, rtol=1e-5)


def test_loops_past_the_depth_give_no_gradient(config):
  """The loss of depth T does not know that the program could run further."""
  config.model.max_loops, config.objective.randomize_max_loops = 3, 2
  objective, params, batch = make_objective(config)
  grads = jax.jit(
    jax.grad(lambda p, step: objective.loss(p, batch, KEY, step), has_aux=True)
  )
  step = next(s for s in range(20) if int(grads(params, s)[1]['depth']) == 2)
  got, metrics = grads(params, step)
  config.model.max_loops, config.objective.randomize_max_loops = 2, 0
  short = objective_of(config)
  want, _ = jax.jit(jax.grad(short.loss, has_aux=True))(
    params, batch, KEY, jnp.int32(step)
  )
  assert int(metrics['exit_loop']) == 1  # The only one below 2, in both.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    got,
    want,
  )


@pytest.mark.parametrize(
  'low,exits', [(1, 'ilsd'), (4, 'ilsd'), (4, 'none'), (2, 'all')]
)
def test_depths_out_of_range_are_refused(config, low, exits):
  config.objective.update({'randomize_max_loops': low, 'exits': exits})
  with pytest.raises(ValueError, match=f'randomize_max_loops = {low} must be'):
    validate(config)


@pytest.mark.parametrize('family', ['diffusion', 'masked'])
def test_telemetry_is_what_each_loop_does(config, family):
  if family == 'masked':
    config = masked_config(config)
    params, batch = init_masked(config)[1], make_tokens(config)
  else:
    params, batch = make_objective(config)[1], make_batch(config, 8)
  objective = objective_of(config)
  look = jax.jit(objective.telemetry)(params, batch, KEY, jnp.int32(4))
  assert {x.shape for x in look.values()} == {(6,)}
  # The loss of each exit is that of a model of so many loops.
  config.objective.exits = 'none'
  for loops in (1, 3, 5):
    config.model.max_loops = loops
    alone, _ = loss_at(objective_of(config), params, batch, 4)
    np.testing.assert_allclose(look['loss'][loops - 1], alone, rtol=1e-4)
  np.testing.assert_allclose(look['agreement'][2], 1, atol=1e-6)
  assert (np.delete(np.asarray(look['agreement']), 2) < 1).all()
  # |h_l| <= |h_(l-1)| + |update|, and the reverse.
  norm, update = (
    np.asarray(look['state_rms']),
    np.asarray(look['relative_update']),
  )
  growth = np.abs(norm[1:] / norm[:-1] - 1)
  assert (growth <= update[1:] + 1e-6).all() and (update > 0).all()
