"""Chips and the least time that a program can take on them.

Peaks are those that Google documents for each generation
(docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, read in 2026-11): bfloat16
FLOP/s, bytes/s of HBM, bytes/s that a chip receives over all its links. Usable
HBM is what the compiler names when a program does not fit.
"""

import dataclasses
from typing import Any

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
  'v5e': Chip(197e12, 819e9, 1600e9 / 8, int(15.75 * GIB)),
  'v5p': Chip(459e12, 2765e9, 4800e9 / 8, int(95.74 * GIB)),
  'v6e': Chip(918e12, 1640e9, 3584e9 / 8, int(31.25 * GIB)),
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
