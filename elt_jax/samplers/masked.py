"""Parallel decoding of masked tokens by a looped model.

MaskGIT (Chang et al., arXiv 2202.04200, section 3.2): start from a sequence
whose unknown tokens are masked; at each of K steps draw all of them, keep the
ones drawn with most confidence, mask the rest again. One `lax.scan` over a
documented state; loops and guidance are traced.
"""

import dataclasses
import math
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from elt_jax.keys import per_example
from elt_jax.models.elt import ELT
from elt_jax.models.vocabulary import Vocabulary, build_vocabulary
from elt_jax.objectives.masked import lowest, mask_ratio
from elt_jax.samplers.guidance import guided
from elt_jax.tokenizers.vqgan import token_grid

Array = jax.Array


@struct.dataclass
class DecodeState:
  """State of the decoding loop.

  Attributes:
    ids: int32 [b, s], the codes known so far and the mask id elsewhere.
    to_draw: int32 [b], how many were masked at the start.
  """

  ids: Array
  to_draw: Array


@dataclasses.dataclass(frozen=True)
class MaskedSampler:
  """Settings that shape the compiled program.

  Attributes:
    model: the looped model.
    vocabulary: ids of codes, classes and mask.
    grid: of the tokens, (h, w) or (f, h, w).
    num_steps: K.
    mask_schedule: share of tokens that are masked after step k, at
      r = (k + 1) / K; see `objectives.masked.mask_ratio`.
    order: which drawn tokens are kept: 'confidence', the most probable;
      'halton', those next in a low-discrepancy order (Halton-MaskGIT, arXiv
      2503.17076), begun at a place of its own for every sample.
    temperature_bias, temperature_scale: tokens are drawn from
      softmax(logits / (bias + scale (1 - r))).
    choice_temperature: tau of the confidence log p + tau (1 - r) Gumbel.
    guidance_schedule: 'constant', 'linear' or 'powcosP'; see `guidance_ramp`.
  """

  model: ELT
  vocabulary: Vocabulary
  grid: tuple[int, ...]
  num_steps: int
  mask_schedule: str
  order: str
  temperature_bias: float
  temperature_scale: float
  choice_temperature: float
  guidance_schedule: str

  def __call__(self, *args: Any, **kwargs: Any) -> Array:
    """The last step of `trajectory`: int32 [b, *grid], all tokens known."""
    return self.trajectory(*args, **kwargs)[-1]

  def trajectory(
    self,
    params: Any,
    key: Array,
    labels: Array,
    loops: Array,
    guidance: Array,
    interval: Array,
    index: Array | None = None,
    known: Array | None = None,
  ) -> Array:
    """Decodes one sample per label, and returns every step.

    Args:
      params: model parameters, as a rule the moving average.
      key: key of this draw.
      labels: int32 [b].
      loops: int32, scalar or [num_steps]: loops at each step.
      guidance: float32 scalar s; 1 turns guidance off.
      interval: float32 [2]: guidance acts at steps whose time 1 - k / K lies
        within (low, high).
      index: int32 [b], default 0..b-1. A sample depends on the key and its
        index alone, not on the batch it is drawn in.
      known: int32 [b, *grid], codes to keep as they are and -1 where tokens
        are to be drawn; None draws all.

    Returns:
      int32 [K, b, *grid], the sequence after each step: codes, and the mask
      id where a token is not decided. After the last, all are.
    """
    b = len(labels)
    index = jnp.arange(b) if index is None else index
    keys = per_example(key, index)
    known = jnp.full((b, *self.grid), -1) if known is None else known

    def body(state: DecodeState, at: dict[str, Array]):
      state = self.step(params, keys, labels, interval, state, at)
      return state, state.ids

    _, ids = jax.lax.scan(
      body, self.start(known), self.schedule(loops, guidance)
    )
    return ids.reshape(-1, b, *self.grid)

  def start(self, known: Array) -> DecodeState:
    """The state before the first step; `known` as in `trajectory`."""
    known = known.reshape(len(known), -1).astype(jnp.int32)
    ids = jnp.where(known < 0, self.vocabulary.mask_id, known)
    return DecodeState(ids, jnp.sum(known < 0, -1))

  def step(
    self,
    params: Any,
    keys: Array,
    labels: Array,
    interval: Array,
    state: DecodeState,
    at: dict[str, Array],
  ) -> DecodeState:
    """One step: draw every unknown token, keep some, mask the rest again.

    Args:
      params, labels, interval: see `trajectory`.
      keys: [b], one per sample.
      state: before the step.
      at: of this step, scalars; see `schedule`.
    """
    mask_id = self.vocabulary.mask_id
    unknown = state.ids == mask_id
    logits = self._logits(params, state.ids, labels, at, interval)
    logits = logits / at['temperature']
    pairs = jax.vmap(
      lambda key: jax.random.split(jax.random.fold_in(key, at['k']))
    )(keys)
    drawn = jax.vmap(jax.random.categorical)(pairs[:, 0], logits)
    drawn = jnp.where(unknown, drawn, state.ids)
    if self.order == 'halton':
      priority = self._halton(keys)
    else:
      log_p = jnp.take_along_axis(
        jax.nn.log_softmax(logits), drawn[..., None], -1
      )[..., 0]
      gumbel = lambda key: jax.random.gumbel(key, log_p.shape[1:])
      priority = log_p + at['noise'] * jax.vmap(gumbel)(pairs[:, 1])
    left = self._left(at, state.to_draw, jnp.sum(unknown, -1))
    again = lowest(jnp.where(unknown, priority, jnp.inf), left)
    ids = jnp.where(again, mask_id, drawn).astype(jnp.int32)
    return state.replace(ids=ids)

  def schedule(self, loops: Array, guidance: Array) -> dict[str, Array]:
    """What changes from step to step, [K] each.

    'k' the step; 'loops'; 'scale' of guidance; 'time' 1 - k / K; 'ratio' of
    tokens masked after it; 'temperature' of tokens; 'noise' of confidence.
    """
    k = np.arange(self.num_steps, dtype=np.float32)
    r = (k + 1) / self.num_steps
    ramp = guidance_ramp(self.guidance_schedule, self.num_steps)
    return {
      'k': jnp.arange(self.num_steps),
      'loops': jnp.broadcast_to(jnp.asarray(loops, jnp.int32), k.shape),
      'scale': 1 + (guidance - 1) * ramp,
      'time': step_times(self.num_steps),
      'ratio': mask_ratio(self.mask_schedule, r, np).astype(np.float32),
      'temperature': self.temperature_bias + self.temperature_scale * (1 - r),
      'noise': self.choice_temperature * (1 - r),
    }

  def _logits(
    self,
    params: Any,
    ids: Array,
    labels: Array,
    at: dict[str, Array],
    interval: Array,
  ) -> Array:
    """Guided logits of the codes, [b, s, codebook]."""

    def forward(ids: Array, labels: Array) -> Array:
      sequence = self.vocabulary.sequence(ids, labels)
      logits, _ = self.model.apply(params, sequence, num_loops=at['loops'])
      # Classes, null and mask are no outcome of a draw.
      return logits[:, 1:, : self.vocabulary.codebook_size]

    if not self.vocabulary.has_null:
      return forward(ids, labels)
    active = (interval[0] <= at['time']) & (at['time'] <= interval[1])
    null = self.vocabulary.num_classes
    return guided(forward, ids, labels, null, at['scale'], active)

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


def guidance_scales(config: Any, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """(time, scale) of each sampling step, [K] each."""
  k = config.sample.num_steps
  ramp = guidance_ramp(config.sample.guidance_schedule, k)
  return step_times(k), 1 + (scale - 1) * ramp


def step_times(num_steps: int) -> np.ndarray:
  """[K] float32 times 1 - k / K: 1 at the first step, as in diffusion."""
  return 1 - np.arange(num_steps, dtype=np.float32) / num_steps


def guidance_ramp(schedule: str, num_steps: int) -> np.ndarray:
  """[K] float32: the scale at step k is 1 + (s - 1) ramp[k].

  'constant' 1; 'linear' k / (K - 1), nothing at first and all at last (Muse,
  Halton-MaskGIT), so nothing at all at K = 1; 'powcosP', as in 'powcos2',
  (1 - cos(pi (k / K)^P)) / 2 (MDT, arXiv 2303.14389).
  """
  k = np.arange(num_steps, dtype=np.float32)
  if schedule == 'constant':
    return np.ones_like(k)
  if schedule == 'linear':
    return k / max(num_steps - 1, 1)
  power = float(schedule.removeprefix('powcos'))
  return (1 - np.cos(np.pi * (k / num_steps) ** power)) / 2


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
  s = config.sample
  return MaskedSampler(
    model=model,
    vocabulary=build_vocabulary(config),
    grid=token_grid(config),
    num_steps=s.num_steps,
    mask_schedule=s.mask_schedule,
    order=s.method,
    temperature_bias=s.temperature_bias,
    temperature_scale=s.temperature_scale,
    choice_temperature=s.choice_temperature,
    guidance_schedule=s.guidance_schedule,
  )
