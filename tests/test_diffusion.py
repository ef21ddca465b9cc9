"""The forms of the weighted loss, and the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.data.transforms import to_unit_range
from elt_jax.objectives import diffusion
from elt_jax.objectives.diffusion import loss_weight
from elt_jax.objectives.schedules import CosineSchedule
from tests.helpers import loss_at, make_objective

PREDICTIONS = ['v', 'x0', 'eps', 'velocity']


def targets(alpha, sigma, x, eps):
  """What a network predicts, by the name of its prediction."""
  v = alpha * eps - sigma * x
  return {'x0': x, 'eps': eps, 'v': v, 'velocity': eps - x}


@pytest.mark.parametrize(
  'weighting,bias',
  [('sigmoid', -2.0), ('sigmoid', 0.0), ('sigmoid', 3.0)]
  + [(name, 0.0) for name in PREDICTIONS],
)
def test_all_forms_of_the_weighted_loss_agree(weighting, bias):
  with jax.enable_x64(True):
    t = jnp.linspace(0.01, 0.99, 50, dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x, eps, guess = rng.standard_normal((3, 50))
    schedule = CosineSchedule(-15.0, 15.0)
    logsnr = schedule.logsnr(t)
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    z = alpha * x + sigma * eps
    right = targets(alpha, sigma, x, eps)
    guessed = targets(alpha, sigma, guess, (z - alpha * guess) / sigma)
    losses = {
      form: loss_weight(form, logsnr, schedule.density(t), weighting, bias)
      * (right[form] - guessed[form]) ** 2
      for form in PREDICTIONS
    }
    for form in PREDICTIONS:
      np.testing.assert_allclose(losses[form], losses['eps'], rtol=1e-8)
    if weighting == 'sigmoid':
      want = 0.5 * schedule.density(t) / (1 + np.exp(logsnr - bias))
      want *= (right['eps'] - guessed['eps']) ** 2
    else:
      want = (right[weighting] - guessed[weighting]) ** 2
    np.testing.assert_allclose(losses['eps'], want, rtol=1e-8)


@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_x0_from_inverts_every_parametrisation(prediction):
  rng = np.random.default_rng(1)
  x, eps = rng.standard_normal((2, 20)).astype(np.float32)
  logsnr = jnp.linspace(-4, 6, 20)
  alpha, sigma = diffusion.alpha_sigma(logsnr)
  output = targets(alpha, sigma, x, eps)[prediction]
  got = diffusion.x0_from(prediction, output, alpha * x + sigma * eps, logsnr)
  np.testing.assert_allclose(got, x, atol=1e-4)


@pytest.mark.parametrize(
  'schedule,prediction',
  [
    (schedule, prediction)
    for schedule, prediction in zip(
      ['cosine', 'cosine', 'linear_beta', 'interpolant'], PREDICTIONS
    )
  ],
)
def test_loss_equals_a_computation_by_hand(config, schedule, prediction):
  config.objective.exits = 'none'
  config.objective.schedule = schedule
  config.objective.prediction = prediction
  config.objective.label_dropout = 0.0
  objective, params, batch = make_objective(config)
  key = jax.random.key(5)
  loss, _ = loss_at(objective, params, batch, 3, key)

  loops = config.model.max_loops
  model_output = jax.jit(
    lambda p, i: objective.model.apply(p, *i, num_loops=loops)
  )
  _, key_examples = jax.random.split(jax.random.fold_in(key, 3))
  total = 0.0
  for i in range(8):
    k_t, k_eps = jax.random.split(jax.random.fold_in(key_examples, i))
    x = batch['image'][i].astype(np.float32) / 127.5 - 1
    t, _ = jax.random.uniform(k_t, (2,))
    eps = jax.random.normal(k_eps, x.shape)
    logsnr = objective.schedule.logsnr(t)
    alpha, sigma = diffusion.alpha_sigma(logsnr)
    z = alpha * x + sigma * eps
    seen = objective.schedule.network_inputs(z[None], t[None])
    out, _ = model_output(params, (*seen, batch['label'][i : i + 1]))
    x0 = diffusion.x0_from(prediction, out[0], z, logsnr)
    # The x0 form of the weighting, whatever the network predicts.
    density = objective.schedule.density(t)
    weight = loss_weight('x0', logsnr, density, 'sigmoid')
    total += weight * np.mean((x0 - x) ** 2)
  np.testing.assert_allclose(loss, total / 8, rtol=1e-4)


@pytest.mark.parametrize(
  'schedule,prediction', [('linear_beta', 'eps'), ('interpolant', 'velocity')]
)
def test_plain_losses_of_dit_and_sit(config, schedule, prediction):
  """The mean of the squared error itself, over times that are uniform."""
  config.objective.update(
    {
      'exits': 'none',
      'schedule': schedule,
      'prediction': prediction,
      'weighting': prediction,
    }
  )
  objective, _, batch = make_objective(config)
  x = to_unit_range(batch['image'])
  key = jax.random.key(0)
  problem = objective.problem(batch, key, jnp.int32(0))
  zero = jnp.zeros(x.shape)
  _, key_examples = jax.random.split(jax.random.fold_in(key, 0))
  eps = [
    jax.random.normal(
      jax.random.split(jax.random.fold_in(key_examples, i))[1], x.shape[1:]
    )
    for i in range(len(x))
  ]
  target = {'eps': np.array(eps), 'velocity': np.array(eps) - x}[prediction]
  np.testing.assert_allclose(
    problem.ground_truth(zero), np.mean(target**2), rtol=1e-5
  )


def test_an_example_is_noised_alike_in_any_part_of_any_batch(config):
  """Halves of a batch average to the whole: accumulation changes nothing."""
  objective, params, batch = make_objective(config)
  whole, _ = loss_at(objective, params, batch, 2)
  halves = [
    loss_at(objective, params, {k: v[i::2] for k, v in batch.items()}, 2)[0]
    for i in (0, 1)
  ]
  np.testing.assert_allclose(whole, np.mean(halves), rtol=1e-5)


def test_label_dropout_one_ignores_the_labels(config):
  losses = []
  for dropout in (0.0, 1.0):
    config.objective.label_dropout = dropout
    objective, params, batch = make_objective(config)
    other = batch | {'label': (batch['label'] + 1) % 4}
    losses.append([loss_at(objective, params, b, 0)[0] for b in (batch, other)])
  assert losses[0][0] != losses[0][1]
  assert losses[1][0] == losses[1][1]


def test_uint8_becomes_minus_one_to_one():
  image = jnp.array([0, 255], jnp.uint8)
  np.testing.assert_allclose(to_unit_range(image), [-1, 1])
  np.testing.assert_allclose(to_unit_range(jnp.array([0.25])), [0.25])
