"""Masked token modelling: predict the hidden codes of a tokenized example.

MaskGIT (Chang et al., arXiv 2202.04200): each example hides a share of its
tokens drawn from a schedule, and the loss is the cross-entropy at the hidden
positions. With COMMIT (MAGVIT, arXiv 2212.05199, section 3.2) some examples are
of a task, as to go on from given frames: where the task has given something, a
hidden token is not masked but replaced by that of the condition, to be mended.
The student's distillation target is the teacher's full softmax
(ELT, arXiv 2604.09168).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.keys import per_example
from elt_jax.models.elt import ELT
from elt_jax.models.vocabulary import Vocabulary, build_vocabulary
from elt_jax.objectives.ilsd import (
  LoopedObjective,
  Problem,
  build_exit_loss,
)

Array = jax.Array


def mask_ratio(schedule: str, u: Any, xp: Any = jnp) -> Any:
  """Share of hidden tokens at u in [0, 1]: 1 at 0, falling to 0 at 1.

  'cosine' cos(pi u / 2) (MaskGIT); 'arccos' 2 arccos(u) / pi (Muse, arXiv
  2301.00704); 'linear' 1 - u; 'powP' 1 - u^P, as in 'pow2.5'. `xp` is
  jax.numpy, or numpy for constants.

  Raises:
    ValueError: on another name.
  """
  if schedule == 'cosine':
    return xp.cos(math.pi / 2 * u)
  if schedule == 'arccos':
    return 2 / math.pi * xp.arccos(u)
  if schedule == 'linear':
    return 1 - u
  try:
    if not schedule.startswith('pow'):
      raise ValueError
    return 1 - u ** float(schedule.removeprefix('pow'))
  except ValueError:
    raise ValueError(
      "A mask schedule is 'cosine', 'arccos', 'linear' or 'powP' as in "
      f"'pow2.5', got {schedule!r}."
    ) from None


def lowest(scores: Array, count: Array) -> Array:
  """bool [..., s], True at exactly the `count` lowest of `scores`.

  Equal scores count in order of position.
  """
  rank = jnp.argsort(jnp.argsort(scores, -1), -1)
  return rank < jnp.asarray(count)[..., None]


def cross_entropy(logits: Array, codes: Array, smoothing: float) -> Array:
  """[..., v], int [...] -> [...], with (1 - e) one-hot + e / v as target."""
  log_p = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_p, codes[..., None], -1)[..., 0]
  return -(1 - smoothing) * picked - smoothing * jnp.mean(log_p, -1)


def soft_cross_entropy(student: Array, teacher: Array) -> Array:
  """Logits [..., v] -> [...], the teacher's softmax as target."""
  return -jnp.sum(jax.nn.softmax(teacher) * jax.nn.log_softmax(student), -1)


def weighted_mean(loss: Array, weight: Array, reduction: str) -> Array:
  """[b, s] -> scalar.

  'sample': the weighted mean of each example, then the mean over the batch,
  so that every example counts alike whatever it hides (MaskGIT). 'batch': one
  weighted mean over all tokens (Muse, TiTok).
  """
  axis = -1 if reduction == 'sample' else None
  return jnp.mean(jnp.sum(weight * loss, axis) / jnp.sum(weight, axis))


@dataclasses.dataclass(frozen=True)
class MaskedObjective(LoopedObjective):
  """Cross-entropy of hidden tokens at every trained exit, in nats.

  Attributes:
    vocabulary: ids of codes, classes and mask.
    mask_schedule: of the share of hidden tokens, see `mask_ratio`.
    label_smoothing: of the ground truth alone; the distillation target is the
      teacher's softmax as it is.
    reduction: 'sample' or 'batch', see `weighted_mean`.
    unmasked_weight: weight of the positions that are not hidden.
    label_dropout: probability of the null class.
    commit: whether examples have the conditions of tasks; an example is then of
      one of them or of none, all with the same probability.
  """

  vocabulary: Vocabulary
  mask_schedule: str
  label_smoothing: float
  reduction: str
  unmasked_weight: float
  label_dropout: float
  commit: bool = False

  def problem(
    self, batch: dict[str, Array], key: Array, step: Array
  ) -> Problem:
    """Losses are mean cross-entropies.

    Args:
      batch: 'tokens' int32 [b, *grid]; 'label' int32 [b]; 'index' int32 [b],
        the position in the global batch: an example's mask and dropout depend
        on it, and on nothing of how the batch is split; with `commit`,
        'conditions' int32 [b, tasks, *grid], -1 where a task gives nothing.
      key: key of the run; `step` is folded in here.
      step: int32 scalar.
    """
    key = jax.random.fold_in(key, step)
    key_exit, key_examples = jax.random.split(key)
    keys = per_example(key_examples, batch['index'])
    codes = batch['tokens'].reshape(len(batch['tokens']), -1)
    hidden, drop = jax.vmap(lambda k: self._draw(k, codes.shape[1]))(keys)
    labels = jnp.where(drop, self.vocabulary.num_classes, batch['label'])
    blank = self._blank(batch, keys) if self.commit else self.vocabulary.mask_id
    ids = self.vocabulary.sequence(jnp.where(hidden, blank, codes), labels)
    weight = jnp.where(hidden, 1.0, self.unmasked_weight)

    def ground_truth(logits: Array) -> Array:
      loss = cross_entropy(logits[:, 1:], codes, self.label_smoothing)
      return weighted_mean(loss, weight, self.reduction)

    def distill(student: Array, teacher: Array) -> Array:
      loss = soft_cross_entropy(student[:, 1:], teacher[:, 1:])
      return weighted_mean(loss, weight, self.reduction)

    def agreement(logits: Array, final: Array) -> Array:
      """Share of hidden tokens whose most probable code is the same."""
      same = jnp.argmax(logits[:, 1:], -1) == jnp.argmax(final[:, 1:], -1)
      return jnp.sum(hidden * same) / jnp.sum(hidden)

    return Problem(
      inputs=(ids,),
      ground_truth=ground_truth,
      distill=distill,
      agreement=agreement,
      key=key_exit,
      dropout_keys=jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys),
    )

  def _blank(self, batch: dict[str, Array], keys: Array) -> Array:
    """What stands in place of hidden tokens, [b, s]."""
    conditions = batch['conditions']
    b, tasks, *_ = conditions.shape
    draw = lambda key: jax.random.randint(
      jax.random.fold_in(key, 2), (), 0, tasks + 1
    )
    none = jnp.full((b, 1, *conditions.shape[2:]), -1)
    every = jnp.concatenate([conditions, none], 1).reshape(b, tasks + 1, -1)
    condition = every[jnp.arange(b), jax.vmap(draw)(keys)]
    return jnp.where(condition < 0, self.vocabulary.mask_id, condition)

  def _draw(self, key: Array, length: int) -> tuple[Array, Array]:
    """(hidden bool [s], whether the label is dropped) of one example."""
    u = jax.random.uniform(jax.random.fold_in(key, 0), (length + 2,))
    count = jnp.floor(length * mask_ratio(self.mask_schedule, u[0]))
    hidden = lowest(u[2:], jnp.clip(count, 1, length))
    return hidden, u[1] < self.label_dropout


def build_objective(config: Any, model: ELT) -> MaskedObjective:
  """The objective of an experiment config."""
  o = config.objective
  return MaskedObjective(
    model=model,
    exit_loss=build_exit_loss(config),
    vocabulary=build_vocabulary(config),
    mask_schedule=o.mask_schedule,
    label_smoothing=o.label_smoothing,
    reduction=o.reduction,
    unmasked_weight=o.unmasked_weight,
    label_dropout=o.label_dropout,
    commit=o.commit,
  )
