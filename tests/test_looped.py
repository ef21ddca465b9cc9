"""The loop functions against plain Python loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.models.looped import loop_states, run_loops, run_loops_dynamic

WEIGHT = jax.random.normal(jax.random.key(0), (6, 6)) * 0.4
H = jax.random.normal(jax.random.key(1), (2, 3, 6))


def block(h, i, weight=WEIGHT):
  return h + jnp.tanh(h @ weight + 0.1 * i)


def manual(h, num_loops):
  for i in range(num_loops):
    h = block(h, i)
  return h


@pytest.mark.parametrize('unroll', [False, True])
@pytest.mark.parametrize('num_loops', [1, 2, 5])
def test_l_loops_equal_l_manual_applications(num_loops, unroll):
  h, h_exit = run_loops(block, H, num_loops, unroll=unroll)
  np.testing.assert_allclose(h, manual(H, num_loops), atol=1e-6)
  assert h_exit is None


@pytest.mark.parametrize('run', [run_loops, run_loops_dynamic])
@pytest.mark.parametrize('exit_loop', [1, 3, 5])
def test_exit_state_equals_a_run_of_that_many_loops(run, exit_loop):
  h, h_exit = run(block, H, 5, exit_loop)
  np.testing.assert_allclose(h, manual(H, 5), atol=1e-6)
  np.testing.assert_allclose(h_exit, manual(H, exit_loop), atol=1e-6)


def test_loop_states_are_every_exit():
  states = loop_states(block, H, 4)
  for i in range(4):
    np.testing.assert_allclose(states[i], manual(H, i + 1), atol=1e-6)


def test_one_program_serves_every_count_and_every_exit():
  traces = []

  @jax.jit
  def dynamic(h, num_loops):
    traces.append('dynamic')
    return run_loops_dynamic(block, h, num_loops)[0]

  @jax.jit
  def static(h, exit_loop):
    traces.append('static')
    return run_loops(block, h, 5, exit_loop)[1]

  for count in range(1, 6):
    np.testing.assert_allclose(dynamic(H, count), manual(H, count), atol=1e-6)
    np.testing.assert_allclose(static(H, count), manual(H, count), atol=1e-6)
  assert sorted(traces) == ['dynamic', 'static']


def test_gradient_of_the_scan_equals_that_of_the_python_loop():
  def scanned(weight):
    h, h_exit = run_loops(lambda h, i: block(h, i, weight), H, 4, jnp.int32(2))
    return jnp.sum(h**2) + jnp.sum(h_exit)

  def plain(weight):
    states = [H]
    for i in range(4):
      states.append(block(states[-1], i, weight))
    return jnp.sum(states[4] ** 2) + jnp.sum(states[2])

  np.testing.assert_allclose(
    jax.grad(scanned)(WEIGHT), jax.grad(plain)(WEIGHT), rtol=1e-4, atol=1e-4
  )


def test_the_student_gives_no_gradient_to_later_loops():
  """With a weight of its own for each loop, those after L_int get none."""
  weights = jnp.stack([WEIGHT] * 4)

  def student(weights):
    _, h_exit = run_loops(
      lambda h, i: block(h, i, weights[i]), H, 4, jnp.int32(2)
    )
    return jnp.sum(h_exit**2)

  grads = np.abs(jax.grad(student)(weights)).sum((1, 2))
  assert (grads[:2] > 0).all() and (grads[2:] == 0).all()


@pytest.mark.parametrize('exit_loop', [0, 4, -1])
def test_static_exit_out_of_range_raises(exit_loop):
  with pytest.raises(ValueError, match=r'exit_loop must be in .*\[1, 3\]'):
    run_loops(block, H, 3, exit_loop)


def test_no_loops_raises():
  with pytest.raises(ValueError, match='at least 1, got 0'):
    run_loops(block, H, 0)
