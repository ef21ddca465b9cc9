"""Saving, restoring on another mesh, damaged steps, mismatches."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_jax.checkpoint import Checkpoints
from elt_jax.train_state import TrainState
from tests.helpers import Stack, damage
from tests.test_sharding import MESHES


def like_of(config, name='data'):
  return Stack(config, MESHES[name]).like


def filled(like):
  """A state in which no two arrays are alike, in place of a trained one."""
  rng = np.random.default_rng(0)
  numbers = lambda x: rng.integers(0, 2**20, x.shape).astype(x.dtype)
  return jax.tree.map(lambda x: jax.device_put(numbers(x), x.sharding), like)


def small():
  """(state, like) of a few arrays that no model made."""
  params = {'layer': {'kernel': jnp.arange(4096.0).reshape(64, 64)}}
  moments = (jnp.int32(3), jax.tree.map(jnp.sin, params))
  state = TrainState(
    jnp.int32(0), params, moments, jax.tree.map(jnp.cos, params)
  )
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  return state, like


def at(state, step):
  return state.replace(step=jnp.full_like(state.step, step))


def test_state_comes_back_whole_on_another_mesh(config, tmp_path):
  config.model.width = 32
  state = filled(like_of(config, 'fsdp'))
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(at(state, 7))
  like = like_of(config, 'all')
  with Checkpoints(tmp_path) as checkpoints:
    restored, position = checkpoints.restore(like)
    ema, step = checkpoints.restore_ema(like.ema)
  assert position == step == 7 and int(restored.step) == 7
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, at(state, 7))
  jax.tree.map(np.testing.assert_array_equal, ema, state.ema)
  kernel = restored.params['layers']['mlp']['in']['kernel']
  assert (
    kernel.sharding == like.params['layers']['mlp']['in']['kernel'].sharding
  )


def test_keeps_the_newest_and_every_mth(tmp_path):
  state, _ = small()
  with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
    for step in range(1, 8):
      checkpoints.save(at(state, step))
    checkpoints.save(at(state, 7))  # Saved already: nothing happens.
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [4, 6, 7]


def test_damaged_step_is_set_aside_and_the_one_before_used(tmp_path, caplog):
  state, like = small()
  with Checkpoints(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(at(state, step))
  root = tmp_path / 'checkpoints'
  damage(root / '3')
  left = root / '4.orbax-checkpoint-tmp-17'  # By a killed save.
  left.mkdir()
  with caplog.at_level(logging.WARNING):
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
      assert checkpoints.restore_ema(like.ema)[1] == 2
    assert (root / '3').exists() and left.exists()  # Reading changes nothing.
    with Checkpoints(tmp_path, keep=3) as checkpoints:
      restored, position = checkpoints.restore(like)
      assert position == 2
      jax.tree.map(np.testing.assert_array_equal, restored, at(state, 2))
      assert list(root.glob('3.unreadable.*')) and not left.exists()
      checkpoints.save(at(state, 3))
  assert 'checkpoints/3 cannot be read, trying the one before' in caplog.text
  assert 'tmp-17 is what a killed save left behind: ignored' in caplog.text
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps()[-1] == 3


def test_nothing_readable_raises(tmp_path):
  state, like = small()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(at(state, 1))
  damage(tmp_path / 'checkpoints' / '1')
  # Twice: the first failure must not clear the way for a start from scratch.
  for _ in range(2):
    with (
      Checkpoints(tmp_path) as checkpoints,
      pytest.raises(ValueError, match=r'None of the checkpoints \[1\]'),
    ):
      checkpoints.restore(like)


def test_a_place_that_cannot_be_reached_is_an_error_not_damage(
  tmp_path, monkeypatch
):
  state, like = small()
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(at(state, step))

    def restore(*args, **kwargs):
      raise ConnectionError('503, try again')

    checkpoints._manager.wait_until_finished()
    with monkeypatch.context() as patch:
      patch.setattr(checkpoints._manager, 'restore', restore)
      with pytest.raises(ConnectionError, match='503'):
        checkpoints.restore(like)
    assert checkpoints.restore(like)[1] == 2
  assert not list(tmp_path.rglob('*unreadable*'))


def test_no_checkpoint_is_none_and_reading_makes_no_directory(tmp_path):
  _, like = small()
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [] and checkpoints.restore(like) is None
  assert not list(tmp_path.iterdir())


def test_other_model_or_dtype_is_an_error_not_damage(config, tmp_path):
  like = like_of(config)
  state = filled(like)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(at(state, 1))
    half = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, jnp.bfloat16, sharding=x.sharding
      ),
      like.ema,
    )
    with pytest.raises(ValueError, match='float32.*bfloat16'):
      checkpoints.restore_ema(half)
    config.model.num_layers = 2
    with pytest.raises(
      ValueError, match=r'layers/adaln/bias is \(\(1, 6, 16\)'
    ):
      checkpoints.restore(like_of(config))
    config.model.num_layers, config.model.loop_embedding = 1, True
    with pytest.raises(ValueError, match='loop/out/bias is missing'):
      checkpoints.restore(like_of(config))
    assert checkpoints.steps() == [1]
