"""Draft and refine: decode the least confident tokens of a sample again.

A finished sample keeps the probability with which each of its tokens was
drawn. A round of refinement masks the share of tokens that were drawn with
the least, and decodes them anew, in fewer steps and at loops of its own, given
all the others. ReDeNoise (arXiv 2502.13450) does as much by re-noising.

It is a heuristic: the distribution of the result is not that of the model, and
a token that is rare but right is drawn again too. Compare it with more loops
at equal GFLOPs.
"""

import dataclasses
from typing import Any

import numpy as np

from elt_jax.samplers.loops import options


@dataclasses.dataclass(frozen=True)
class Refine:
  """How a draft is refined.

  Attributes:
    rounds: how many times.
    share: of the tokens that were drawn, in (0, 1], masked in each round.
    steps: K of a round.
    loops: of every step of a round.
  """

  rounds: int
  share: float
  steps: int
  loops: int


def parse(text: str, config: Any) -> Refine:
  """'rounds=2:share=0.2:steps=4:loops=3', of which any part may be left out.

  By default one round over 0.3 of the tokens, in a third of the steps, at
  L_max loops.

  Raises:
    ValueError: on another form, or a value out of range.
  """
  num_steps = config.sample.num_steps
  given = options(text, text, ('rounds', 'share', 'steps', 'loops'))
  found = {
    'rounds': 1,
    'share': 0.3,
    'steps': max(1, num_steps // 3),
    'loops': config.model.max_loops,
  } | given
  whole = [found[name] for name in ('rounds', 'steps', 'loops')]
  if any(n < 1 or n % 1 for n in whole) or not 0 < found['share'] <= 1:
    raise ValueError(
      f'--refine={text}: rounds, steps and loops must be integers of at least '
      '1, and share in (0, 1].'
    )
  share = found.pop('share')
  return Refine(share=share, **{k: int(v) for k, v in found.items()})


def least_confident(
  tokens: np.ndarray, log_p: np.ndarray, fixed: np.ndarray, share: float
) -> np.ndarray:
  """Tokens to keep, int32 [n, *grid], and -1 where they are drawn again.

  Args:
    tokens: int32 [n, *grid].
    log_p: of each when it was drawn.
    fixed: bool, tokens that were given and stay.
    share: of the others, drawn again; at least one of each sample, if any.
  """
  n = len(tokens)
  score = np.where(fixed, np.inf, log_p).reshape(n, -1)
  free = np.sum(~fixed.reshape(n, -1), -1, keepdims=True)
  count = np.minimum(np.maximum(np.rint(share * free), 1), free)
  rank = np.argsort(np.argsort(score, -1, kind='stable'), -1)
  again = (rank < count).reshape(tokens.shape)
  return np.where(again, -1, tokens).astype(np.int32)
