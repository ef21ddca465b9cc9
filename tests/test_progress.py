"""Utilisation of devices that are not here, and which steps may be traced."""

import types

import jax
import pytest

from elt_jax import flops, roofline
from elt_jax.validation import validate


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
    {'train/tflops_per_device': 918 / 2, 'train/mfu': 0.5}
  )
  assert roofline.memory() == {'train/hbm_gib': 3.0}
  chip.memory_stats = lambda: None  # A CPU.
  assert roofline.memory() == {}


@pytest.mark.parametrize('steps', [(5,), (0, 3), (6, 4), (1, 21)])
def test_steps_of_a_trace_are_checked(config, steps):
  with config.unlocked():
    config.profile.steps = steps
  with pytest.raises(ValueError, match='profile.steps must be'):
    validate(config)
