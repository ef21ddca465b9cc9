"""Rows of samples: what drawing one costs, and the picture they make."""

from collections.abc import Sequence
import math
import time
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from elt_jax import flops, video, viz
from elt_jax.samplers.draw import Draw, Spent
from elt_jax.samplers.loops import Loops


class Row(NamedTuple):
  """Samples drawn in one way.

  Attributes:
    samples: uint8 [n, (f,) h, w, c].
    spent: as of `Draw.sample`.
    gflops: of a sample, the tokenizer left out.
    seconds: of all of them, of compiling too if they were the first.
  """

  samples: np.ndarray
  spent: list[Spent]
  gflops: float
  seconds: float


def draw_row(
  draw: Draw,
  params: Any,
  labels: Sequence[int],
  loops: int | str | Loops,
  seed: int,
  **given: Any,
) -> Row:
  """A sample per label, for the eye. Arguments and errors as `Draw.sample`."""
  began = time.monotonic()
  drawn = draw.sample(params, labels, loops, seed, **given)
  samples = viz.to_uint8(drawn.samples)
  seconds = time.monotonic() - began
  gflops = flops.gflops_per_sample(draw.config, drawn.spent)
  return Row(samples, drawn.spent, gflops, seconds)


def suffixes(config: Any) -> tuple[str, ...]:
  """Of the files that samples of a model can be saved as."""
  return ('.png', *video.SUFFIXES) if config.data.num_frames > 1 else ('.png',)


def check_suffix(out: epath.Path, config: Any) -> None:
  """Raises ValueError unless `out` has one of `suffixes`."""
  allowed = suffixes(config)
  if out.suffix not in allowed:
    kind = 'clips' if config.data.num_frames > 1 else 'images'
    raise ValueError(
      f'--out must end in {" or ".join(allowed)} for a model of {kind}, got '
      f'{out}.'
    )


def lay_out(
  samples: np.ndarray,
  names: Sequence[str],
  columns: Sequence[str],
  scale: int = 2,
  wrap: bool = False,
  plays: bool = False,
) -> np.ndarray:
  """Rows of samples in one picture, or in frames: uint8 [(f,) H, W, 3].

  Args:
    samples: uint8 [rows, n, (f,) h, w, c].
    names: of the rows, shown where clips play.
    columns: names of the n columns, likewise.
    scale: how many pixels wide a pixel becomes.
    wrap: lays a single row of images out as a square.
    plays: frames of clips, in place of a film strip of each.
  """
  if plays:
    return video.side_by_side(samples, names, columns, scale)
  picture = viz.versions(samples)
  if wrap and len(samples) == 1 and samples.ndim == 5:
    picture = viz.grid(samples[0], math.ceil(math.sqrt(samples.shape[1])))
  return picture.repeat(scale, 0).repeat(scale, 1)
