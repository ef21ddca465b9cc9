"""Parallel decoding of masked tokens by a looped model.

MaskGIT (Chang et al., arXiv 2202.04200, section 3.2): start from a sequence
whose unknown tokens are masked; at each of K steps draw all of them, keep the
ones drawn with most confidence, mask the rest again.

Tokens may be given in two ways. Those that are known stay as they are. A
condition stands in place of the mask until its positions are drawn too, so that
the model may mend it: COMMIT (MAGVIT, arXiv 2212.05199, algorithm 1).
"""

import dataclasses
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.models.elt import ELT, Head
from elt_jax.models.looped import Block
from elt_jax.models.vocabulary import Vocabulary, build_vocabulary
from elt_jax.objectives.masked import lowest, mask_ratio
from elt_jax.samplers.sampler import Sampler
from elt_jax.tokenizers.vqgan import token_grid

Array = jax.Array


@struct.dataclass
class DecodeState:
  """State of the decoding loop.

  Attributes:
    ids: int32 [b, s], the codes decided so far and `blank` elsewhere.
    undecided: bool [b, s].
    blank: int32 [b, s], what the model sees until a token is decided: the mask
      id, or the condition.
    log_p: float32 [b, s], the log-probability with which each token was
      drawn; 0 where it was given, and where it is not decided.
    to_draw: int32 [b], how many were undecided at the start.
  """

  ids: Array
  undecided: Array
  blank: Array
  log_p: Array
  to_draw: Array


@struct.dataclass
class Decoded:
  """What decoding gives.

  Attributes:
    tokens: int32 [b, *grid].
    log_p: float32 [b, *grid], the log-probability of each when it was drawn; 0
      of tokens that were given.
  """

  tokens: Array
  log_p: Array


@dataclasses.dataclass(frozen=True)
class MaskedSampler(Sampler):
  """Settings that shape the compiled program; see `Sampler` for the rest.

  Attributes:
    vocabulary: ids of codes, classes and mask.
    grid: of the tokens, (h, w) or (f, h, w).
    mask_schedule: share of tokens that are masked after step k, at
      r = (k + 1) / K; see `objectives.masked.mask_ratio`.
    order: which drawn tokens are kept: 'confidence', the most probable;
      'halton', those next in a low-discrepancy order (Halton-MaskGIT, arXiv
      2503.17076), begun at a place of its own for every sample.
    temperature_bias, temperature_scale: tokens are drawn from
      softmax(logits / (bias + scale (1 - r))).
    choice_temperature: tau of the confidence log p + tau (1 - r) Gumbel.
  """

  vocabulary: Vocabulary
  grid: tuple[int, ...]
  mask_schedule: str
  order: str
  temperature_bias: float
  temperature_scale: float
  choice_temperature: float

  def start(
    self,
    keys: Array,
    known: Array | None = None,
    condition: Array | None = None,
  ) -> DecodeState:
    """Everything to be drawn but what is known.

    Args:
      keys: [b].
      known: int32 [b, *grid], codes to keep as they are and -1 where tokens
        are to be drawn; None draws all.
      condition: int32 [b, *grid], codes that stand in for the mask and -1
        where there are none; None is a mask everywhere.
    """
    shape = (len(keys), math.prod(self.grid))
    flat = lambda given: (
      jnp.full(shape, -1) if given is None else given.reshape(shape)
    ).astype(jnp.int32)
    known, condition = flat(known), flat(condition)
    blank = jnp.where(condition < 0, self.vocabulary.mask_id, condition)
    undecided = known < 0
    return DecodeState(
      ids=jnp.where(undecided, blank, known),
      undecided=undecided,
      blank=blank,
      log_p=jnp.zeros(shape),
      to_draw=jnp.sum(undecided, -1),
    )

  def schedule(self) -> dict[str, Array]:
    """What changes from step to step, [K] each.

    'k' the step; 'ratio' of tokens masked after it; 'temperature' of tokens;
    'noise' of confidence.
    """
    r = (np.arange(self.num_steps, dtype=np.float32) + 1) / self.num_steps
    return {
      'k': jnp.arange(self.num_steps),
      'ratio': jnp.asarray(
        mask_ratio(self.mask_schedule, r, np).astype(np.float32)
      ),
      'temperature': jnp.asarray(
        self.temperature_bias + self.temperature_scale * (1 - r)
      ),
      'noise': jnp.asarray(self.choice_temperature * (1 - r)),
    }

  def bind(
    self, params: Any, state: DecodeState, labels: Array, at: dict[str, Array]
  ) -> tuple[Array, Block, Head]:
    """The head: logits of the codes over temperature, [b, s, codebook]."""
    sequence = self.vocabulary.sequence(state.ids, labels)
    h, block, head = self.model.bind(params, sequence)
    # Classes, null and mask are no outcome of a draw.
    codes = self.vocabulary.codebook_size
    return h, block, lambda h: head(h)[:, 1:, :codes] / at['temperature']

  def estimate(self, state: DecodeState, output: Array) -> Array:
    """int32 [b, *grid]: the likeliest code of each token not decided yet."""
    likeliest = jnp.argmax(output, -1).astype(jnp.int32)
    tokens = jnp.where(state.undecided, likeliest, state.ids)
    return tokens.reshape(-1, *self.grid)

  def change(self, state: DecodeState, new: Array, old: Array) -> Array:
    """Total variation of an undecided token's distribution, on average."""
    apart = jnp.abs(jax.nn.softmax(new) - jax.nn.softmax(old)).sum(-1) / 2
    left = state.undecided
    return jnp.sum(left * apart, -1) / jnp.maximum(jnp.sum(left, -1), 1)

  def advance(
    self, keys: Array, state: DecodeState, output: Array, at: dict[str, Array]
  ) -> DecodeState:
    """Draws every undecided token, keeps some, blanks the rest again."""
    undecided = state.undecided
    pairs = jax.vmap(
      lambda key: jax.random.split(jax.random.fold_in(key, at['k']))
    )(keys)
    drawn = jax.vmap(jax.random.categorical)(pairs[:, 0], output)
    drawn = jnp.where(undecided, drawn, state.ids)
    log_p = jnp.take_along_axis(
      jax.nn.log_softmax(output), drawn[..., None], -1
    )[..., 0]
    if self.order == 'halton':
      priority = self._halton(keys)
    else:
      gumbel = lambda key: jax.random.gumbel(key, log_p.shape[1:])
      priority = log_p + at['noise'] * jax.vmap(gumbel)(pairs[:, 1])
    left = self._left(at, state.to_draw, jnp.sum(undecided, -1))
    again = lowest(jnp.where(undecided, priority, jnp.inf), left)
    return state.replace(
      ids=jnp.where(again, state.blank, drawn).astype(jnp.int32),
      undecided=again,
      log_p=jnp.where(undecided & ~again, log_p, state.log_p),
    )

  def effect(
    self, state: DecodeState, new: Array, old: Array, at: dict[str, Array]
  ) -> Array:
    """Expected share of all tokens that come out otherwise in the end.

    Those of this step, and half of those decided later, if any of this step
    does: on digits, changing the loops of one step alone, 0.4 of them did.
    """
    now = jnp.sum(state.undecided, -1)
    left = self._left(at, state.to_draw, now)
    apart, here = self.change(state, new, old), now - left
    any_other = 1 - (1 - apart) ** here
    return (apart * here + any_other * left / 2) / state.ids.shape[1]

  def finish(self, state: DecodeState) -> Decoded:
    shape = (-1, *self.grid)
    return Decoded(state.ids.reshape(shape), state.log_p.reshape(shape))

  def _left(self, at: dict[str, Array], to_draw: Array, now: Array) -> Array:
    """How many tokens stay masked after this step, [b].

    The schedule's share of those to draw, but at least one until the last
    step and at least one fewer than now.
    """
    # A product that is whole but for rounding counts as whole.
    left = jnp.floor(to_draw * at['ratio'] + 1e-3).astype(jnp.int32)
    left = jnp.minimum(jnp.maximum(jnp.minimum(left, now - 1), 1), now)
    return jnp.where(at['k'] == self.num_steps - 1, 0, left)

  def _halton(self, keys: Array) -> Array:
    """Priorities [b, s]: earlier in the order is higher."""
    rank, s = halton_rank(self.grid), math.prod(self.grid)
    # Steps fold in 0..K-1.
    draw = lambda key: jax.random.randint(
      jax.random.fold_in(key, self.num_steps), (), 0, s
    )
    begin = jax.vmap(draw)(keys)
    return -((rank - begin[:, None]) % s).astype(jnp.float32)


def halton_rank(grid: tuple[int, ...]) -> np.ndarray:
  """[s] int32: the turn of each position, row by row, in Halton's order.

  Axis j takes the radical inverse in the j-th prime as its coordinate;
  positions already taken are passed over.
  """
  order, taken, n = [], set(), 0
  while len(order) < math.prod(grid):
    place = tuple(
      int(_radical_inverse(n, base) * size)
      for base, size in zip((2, 3, 5), grid)
    )
    if place not in taken:
      taken.add(place)
      order.append(np.ravel_multi_index(place, grid))
    n += 1
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order))
  return rank


def _radical_inverse(n: int, base: int) -> float:
  """The digits of n mirrored behind the point: 6 = 110 in base 2 -> 0.011."""
  value, weight = 0.0, 1 / base
  while n:
    n, digit = divmod(n, base)
    value += digit * weight
    weight /= base
  return value


def build_sampler(config: Any, model: ELT) -> MaskedSampler:
  """The sampler of an experiment config, to be jitted by the caller."""
  s, vocabulary = config.sample, build_vocabulary(config)
  return MaskedSampler(
    model=model,
    num_steps=s.num_steps,
    null_label=vocabulary.num_classes if vocabulary.has_null else None,
    watch=s.watch,
    vocabulary=vocabulary,
    grid=token_grid(config),
    mask_schedule=s.mask_schedule,
    order=s.method,
    temperature_bias=s.temperature_bias,
    temperature_scale=s.temperature_scale,
    choice_temperature=s.choice_temperature,
  )
