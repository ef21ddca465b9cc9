"""What a run shows of itself: traces and utilisation."""

import types

from commands import TINY, metrics, run
import jax
import numpy as np
import pytest

from elt_jax import config as config_lib
from elt_jax import flops, roofline
from elt_jax.validation import validate


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  run(
    'train',
    *TINY,
    '--config.train.num_steps=8',
    '--config.profile.steps=4,6',
    f'--workdir={workdir}',
  )
  return workdir


def test_the_trace_has_the_steps_asked_for_and_no_others(traced):
  paths = traced.glob('logs/plugins/profile/*/*.xplane.pb')
  (path,) = paths  # Where TensorBoard looks for it.
  steps = {
    dict(event.stats)['step_num']
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  }
  assert steps == {4, 5, 6}


def test_the_log_has_the_flops_of_a_device(traced):
  config = config_lib.load(traced)
  for record in metrics(traced)[1:]:
    rate = record['train/steps_per_second']
    np.testing.assert_allclose(
      record['train/tflops_per_device'],
      flops.flops_per_step(config) * rate / 1e12,
    )
    assert 'train/mfu' not in record  # Of this CPU no peak is known.


def test_known_chips_have_mfu_and_memory(config, monkeypatch):
  chip = types.SimpleNamespace(
    device_kind='TPU v6 lite',
    memory_stats=lambda: {'peak_bytes_in_use': 3 * 2**30},
  )
  monkeypatch.setattr(jax, 'local_devices', lambda: [chip])
  monkeypatch.setattr(jax, 'device_count', lambda: 4)
  step = flops.flops_per_step(config)
  found = roofline.reached(config, 4 * 918e12 / step / 2)
  assert found == pytest.approx(
    {
      'train/tflops_per_device': 918 / 2,
      'train/mfu': 0.5,
      'train/hbm_gib': 3.0,
    }
  )


@pytest.mark.parametrize('steps', [(5,), (0, 3), (6, 4), (1, 21)])
def test_steps_of_a_trace_are_checked(config, steps):
  with config.unlocked():
    config.profile.steps = steps
  with pytest.raises(ValueError, match='profile.steps must be'):
    validate(config)
