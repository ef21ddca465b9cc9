"""Chips, the least time that a program can take on them, and what a run takes.

Peaks are those that Google documents for each generation
(docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, read in 2026-11): bfloat16
FLOP/s, bytes/s of HBM, bytes/s that a chip receives over all its links, which
is half of what they carry both ways. Usable HBM is what the compiler names when
a program does not fit.
"""

import dataclasses
from typing import Any

import jax

from elt_jax import flops

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one chip.

  Attributes:
    flops: bfloat16 FLOP/s.
    hbm_bandwidth: bytes/s.
    link_bandwidth: bytes/s received from other chips of the slice.
    hbm_bytes: what a program can use.
  """

  flops: float
  hbm_bandwidth: float
  link_bandwidth: float
  hbm_bytes: int


CHIPS = {
  'v5e': Chip(197e12, 819e9, 400e9 / 2, int(15.75 * GIB)),
  'v5p': Chip(459e12, 2765e9, 1200e9 / 2, int(95.74 * GIB)),
  'v6e': Chip(918e12, 1638e9, 800e9 / 2, int(31.25 * GIB)),
}
# What JAX calls them.
DEVICE_KINDS = {
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}


def floor(
  chip: Chip, flops: float, hbm_bytes: float, link_bytes: float
) -> dict[str, Any]:
  """The least seconds of a step, everything overlapping, all peaks reached.

  Args:
    chip: of the slice.
    flops: of a step on one chip, without recomputation.
    hbm_bytes: that a chip must read and write at least.
    link_bytes: that a chip receives.

  Returns:
    {'compute', 'hbm', 'links', 'seconds', 'mfu'}; 'mfu' is the share of the
    peak FLOP/s that no run can exceed.
  """
  parts = {
    'compute': flops / chip.flops,
    'hbm': hbm_bytes / chip.hbm_bandwidth,
    'links': link_bytes / chip.link_bandwidth,
  }
  seconds = max(parts.values())
  return parts | {'seconds': seconds, 'mfu': parts['compute'] / seconds}


def memory() -> dict[str, float]:
  """'train/hbm_gib', the most that was used at a time, where devices tell."""
  if stats := jax.local_devices()[0].memory_stats():
    return {'train/hbm_gib': stats['peak_bytes_in_use'] / GIB}
  return {}


def reached(config: Any, steps_per_second: float) -> dict[str, float]:
  """What a run of a looped model gets out of its devices, as metrics.

  Returns:
    'train/tflops_per_device': model FLOPs a second, as `flops.flops_per_step`
    counts them; of known chips 'train/mfu', their share of the peak.
  """
  device = jax.local_devices()[0]
  rate = flops.flops_per_step(config) * steps_per_second / jax.device_count()
  found = {'train/tflops_per_device': rate / 1e12}
  if device.device_kind in DEVICE_KINDS:
    chip = CHIPS[DEVICE_KINDS[device.device_kind]]
    found['train/mfu'] = rate / chip.flops
  return found
