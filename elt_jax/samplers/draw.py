"""Any number of samples through one compiled program of a fixed batch size."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from elt_jax import hosts, sharding
from elt_jax.keys import random_stream
from elt_jax.mesh import batch_shards
from elt_jax.models.elt import ELT
from elt_jax.samplers import build_sampler, refine
from elt_jax.samplers.loops import Loops, parse
from elt_jax.samplers.masked import Decoded
from elt_jax.samplers.plan import Plan, build_plan
from elt_jax.samplers.probe import Probe, exits, probe
from elt_jax.samplers.rebatch import Rebatched
from elt_jax.tokenizers.autoencoder import Autoencoder
from elt_jax.tokenizers.pretrained import Tokenizer
from elt_jax.validation import validate


class Spent(NamedTuple):
  """What a run through the sampler cost.

  Attributes:
    plan: of the run.
    loops: float [K, 2], loops really run at each step by the conditional and
      the unconditional pass of a sample's batch; means over samples.
  """

  plan: Plan
  loops: np.ndarray


class Drawn(NamedTuple):
  """Samples and the runs that made them.

  Attributes:
    samples: float32 [n, (f,) h, w, c] in the range of the training data;
      int32 tokens [n, *grid] of a masked model without a tokenizer.
    spent: the run, and each round of refinement.
  """

  samples: np.ndarray
  spent: list[Spent]


class Draw:
  """Draws samples of a model, with one program for every plan.

  Refinement and making batches anew have programs of their own.

  Attributes:
    config: of the model.
    batch_size: samples of a program's call; those that end their loops early
      wait for each other.
    tokenizer: what decodes tokens of a masked model, or latents; or None.
  """

  def __init__(
    self,
    config: Any,
    model: ELT,
    mesh: Mesh,
    batch_size: int | None = None,
    tokenizer: Tokenizer | Autoencoder | None = None,
    workdir: str = '',
  ):
    """Prepares to draw `batch_size` samples at a time.

    Args:
      config: experiment config.
      model: its model, built for `mesh`.
      mesh: devices over which a batch is split.
      batch_size: None takes config.sample.batch_size; rounded up to a
        multiple of the devices.
      tokenizer: to turn tokens or latents into images; None where the model
        draws images itself.
      workdir: of the model, where calibrated schedules are.
    """
    self.config = config
    self._workdir = workdir
    self.tokenizer = tokenizer
    self._has_tokens = tokenizer is not None and config.model.family == 'masked'
    self._mesh = mesh
    shards = batch_shards(mesh)
    batch_size = batch_size or config.sample.batch_size
    self.batch_size = -(-batch_size // shards) * shards
    self._sampler = build_sampler(config, model)
    self._programs, self._warm = {}, set()

  def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
    """The samples of `sample`, without their cost."""
    return self.sample(*args, **kwargs).samples

  def sample(
    self,
    params: Any,
    labels: Sequence[int],
    loops: int | str | Sequence[int] | Loops,
    seed: int,
    known: np.ndarray | None = None,
    condition: np.ndarray | None = None,
    refined: refine.Refine | None = None,
    first: int = 0,
    **changes: Any,
  ) -> Drawn:
    """One sample per label.

    Sample i depends on (seed, i, labels[i]) and on how it is drawn, and on no
    other sample, unless `loops` ends steps early: those wait for their batch.

    Args:
      params: the moving average of a trained model.
      labels: int [n], in [0, num_classes).
      loops: loops at every step, one number per step, or a form of
        `samplers.loops`.
      seed: of the noise.
      known: int32 [n, *grid], for masked models: tokens to keep, -1 where they
        are to be drawn.
      condition: int32 [n, *grid], for masked models trained with conditions:
        tokens to go by, -1 where there are none; all are drawn, but for the
        known.
      refined: rounds of refinement, for masked models.
      first: i of the first sample, of those drawn in parts.
      **changes: in place of values of config.sample; see `plan.VALUES`.

    Raises:
      ValueError: on labels, loops, guidance or known tokens out of range,
        or a condition for a model trained without.
    """
    labels = self._checked(labels)
    given = self._given(len(labels), known, condition)
    loops = parse(loops, self.config, self._workdir)
    plan, *rounds = self.plans(loops, refined, **changes)
    if first and loops.rebatch:
      raise ValueError('Samples made batches of anew are drawn all at once.')
    batches = functools.partial(self._batches, first=first)
    key = random_stream(seed, 'sample')
    run = self._rebatched if loops.rebatch else batches
    out, ran = run(params, key, labels, plan, given)
    spent = [Spent(plan, ran)]
    for n, plan in enumerate(rounds):
      key = jax.random.fold_in(random_stream(seed, 'refine'), n)
      fixed, log_p = given['known'] >= 0, out.log_p
      keep = refine.least_confident(out.tokens, log_p, fixed, refined.share)
      given = given | {'known': keep}
      out, ran = batches(params, key, labels, plan, given, refined.steps)
      out = out.replace(log_p=np.where(keep < 0, out.log_p, log_p))
      spent.append(Spent(plan, ran))
    if isinstance(out, Decoded):
      out = out.tokens
    return Drawn(self._decode(out) if self.tokenizer else out, spent)

  def plans(
    self,
    loops: int | str | Sequence[int] | Loops,
    refined: refine.Refine | None = None,
    **changes: Any,
  ) -> list[Plan]:
    """Of the run and of each round of refinement, checked; see `sample`."""
    if refined and not self._has_tokens:
      raise ValueError('Refinement is for masked models with a tokenizer.')
    loops = parse(loops, self.config, self._workdir)
    plans = [build_plan(self.config, loops, **changes)]
    if refined:
      config = self.config.copy_and_resolve_references()
      config.sample.num_steps = refined.steps
      again = build_plan(config, refined.loops, **changes)
      plans += [again] * refined.rounds
    return plans

  def warm_up(
    self,
    params: Any,
    loops: Loops,
    refined: refine.Refine | None = None,
    **changes: Any,
  ) -> None:
    """Compiles what `sample` runs for these, unless that is done already."""
    programs = (loops.rebatch, refined.steps if refined else 0)
    if programs not in self._warm:
      self.sample(params, [0], loops, 0, refined=refined, **changes)
      self._warm.add(programs)

  def probe(
    self, params: Any, num: int, num_loops: int, seed: int, **changes: Any
  ) -> Probe:
    """What each of `num_loops` loops would give along the way of L_max.

    See `samplers.probe`; here [K, num_loops] each, means over `num` samples
    whose labels take turns. Arguments are as those of `sample`.
    """
    shards = batch_shards(self._mesh)
    size = min(-(-num // shards) * shards, self.batch_size)
    labels = np.arange(num, dtype=np.int32) % self.config.data.num_classes
    taken = self.config.model.max_loops
    program = jax.jit(functools.partial(probe, self._sampler, taken, num_loops))
    plan = build_plan(self.config, num_loops, **changes)
    key = random_stream(seed, 'sample')
    found = self._each(program, params, key, labels, plan, {}, size)
    join = lambda *x: np.concatenate(x, -1)[..., :num].mean(-1)
    return jax.tree.map(join, *found)

  def exits(
    self,
    params: Any,
    labels: Sequence[int],
    num_loops: int,
    seed: int,
    **changes: Any,
  ) -> np.ndarray:
    """Samples as each of `num_loops` loops has them, along the way of L_max.

    float32 [n, K, num_loops, (f,) h, w, c]: the guided output after so many
    loops of every step; of a masked model, its likeliest tokens. The arguments
    are as those of `sample`.
    """
    labels = self._checked(labels)
    taken = self.config.model.max_loops
    program = jax.jit(functools.partial(exits, self._sampler, taken, num_loops))
    plan = build_plan(self.config, num_loops, **changes)
    key = random_stream(seed, 'sample')
    size = self.batch_size
    found = self._each(program, params, key, labels, plan, {}, size)
    found = np.moveaxis(np.concatenate(found, 2)[:, :, : len(labels)], 2, 0)
    if not self.tokenizer:
      return found
    images = self._decode(found.reshape(-1, *found.shape[3:]))
    return images.reshape(*found.shape[:3], *images.shape[1:])

  def with_steps(self, num_steps: int) -> 'Draw':
    """This one at another K: with programs of its own."""
    config = self.config.copy_and_resolve_references()
    config.sample.num_steps = num_steps
    return Draw(
      validate(config),
      self._sampler.model,
      self._mesh,
      self.batch_size,
      self.tokenizer,
      self._workdir,
    )

  def _batches(
    self,
    params: Any,
    key: jax.Array,
    labels: np.ndarray,
    plan: Plan,
    given: dict[str, np.ndarray],
    num_steps: int | None = None,
    first: int = 0,
  ) -> tuple[Any, np.ndarray]:
    """(what the sampler gives, in numpy; loops run), batch after batch."""
    program = self._program(num_steps or self._sampler.num_steps)
    size = self.batch_size
    parts = self._each(program, params, key, labels, plan, given, size, first)
    out, reports = zip(*parts, strict=True)
    out = jax.tree.map(lambda *x: np.concatenate(x)[: len(labels)], *out)
    real = [min(size, len(labels) - n * size) for n in range(len(reports))]
    loops = [report.loops for report in reports]
    return out, np.average(loops, 0, real)

  def _each(
    self,
    program: Any,
    params: Any,
    key: jax.Array,
    labels: np.ndarray,
    plan: Plan,
    given: dict[str, np.ndarray],
    size: int,
    first: int = 0,
  ) -> list[Any]:
    """What `program` gives for each batch of `size`, in numpy."""
    batched = sharding.batch_sharding(self._mesh)
    rows, out = {'labels': labels, **given}, []
    for index in sharding.padded_batches(len(labels), size):
      parts = {k: v[index] for k, v in rows.items()}
      parts['index'] = first + index
      parts = jax.device_put(parts, batched)
      out.append(program(params, key, plan=plan, **parts))
    return hosts.fetch(out)

  def _program(self, num_steps: int) -> Any:
    """The compiled sampler of K steps; a round of refinement has its own."""
    if num_steps not in self._programs:
      sampler = dataclasses.replace(self._sampler, num_steps=num_steps)
      self._programs[num_steps] = jax.jit(sampler.__call__)
    return self._programs[num_steps]

  @functools.cached_property
  def _rebatched(self) -> Rebatched:
    return Rebatched(self._sampler, self._mesh, self.batch_size)

  def _decode(self, drawn: np.ndarray) -> np.ndarray:
    """Tokens or latents [n, ...] -> float32 [n, (f,) h, w, c] in [-1, 1]."""
    batched = sharding.batch_sharding(self._mesh)
    images = [
      self.tokenizer.decode(jax.device_put(drawn[index], batched))
      for index in sharding.padded_batches(len(drawn), self.batch_size)
    ]
    return np.concatenate(hosts.fetch(images))[: len(drawn)]

  def _checked(self, labels: Sequence[int]) -> np.ndarray:
    """int32 [n], refused unless all are classes."""
    labels = np.asarray(labels, np.int32)
    classes = self.config.data.num_classes
    if labels.min() < 0 or labels.max() >= classes:
      raise ValueError(
        f'Labels must be in 0..{classes - 1}, got '
        f'{labels.min()}..{labels.max()}.'
      )
    return labels

  def _given(
    self, num: int, known: np.ndarray | None, condition: np.ndarray | None
  ) -> dict[str, np.ndarray]:
    """What the sampler's `start` takes besides keys: always the same names."""
    if not self._has_tokens:
      if known is not None or condition is not None:
        raise ValueError('Known tokens are for masked models with a tokenizer.')
      return {}
    if condition is not None and not self.config.objective.commit:
      raise ValueError(
        'This model was trained without conditions (objective.commit): give '
        'it known tokens.'
      )
    shape = (num, *self.tokenizer.grid)
    codes = self.tokenizer.config.tokenizer.codebook_size
    given = {'known': known}
    if self.config.objective.commit:
      given['condition'] = condition
    for name, tokens in given.items():
      tokens = np.full(shape, -1) if tokens is None else tokens
      low, high = int(tokens.min()), int(tokens.max())
      if tokens.shape != shape or low < -1 or high >= codes:
        raise ValueError(
          f'{name} must be {shape} with values in -1..{codes - 1}, got '
          f'{tokens.shape} with {low}..{high}.'
        )
      given[name] = tokens.astype(np.int32)
    return given
