"""Intra-Loop Self Distillation: which exits are trained, and on what.

One forward pass of L_max loops gives the teacher (the last state) and the
student (the state after L_int < L_max loops); with the ground-truth loss L_GT
and the distillation loss L_dist of the family (ELT, arXiv 2604.09168):

    L = L_GT(F_Lmax)
      + lambda L_GT(F_Lint) + (1 - lambda) L_dist(F_Lint, sg F_Lmax)

lambda falls linearly from 1 at the first step to 0 at the last; L_int is drawn
once per step, uniformly from L_min..L_max-1, the same for every example.

An option of ours draws the depth of the teacher too, so that no depth is the
one that was trained: a model trained at one depth alone is best there and
worse on either side, also beyond.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.models.elt import ELT
from elt_jax.models.looped import Block, loop_states, run_loops

Array = jax.Array
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Problem:
  """One batch as a family states it.

  Attributes:
    inputs: what `model.embed` takes.
    ground_truth: prediction -> scalar, L_GT.
    distill: (student, teacher) -> scalar, L_dist.
    agreement: (prediction, final prediction) -> scalar, 1 where they agree.
    key: of this step, from which depths are drawn.
    dropout_keys: [b], one per example; None for models without dropout.
  """

  inputs: tuple[Array, ...]
  ground_truth: Callable[[Array], Array]
  distill: Callable[[Array, Array], Array]
  agreement: Callable[[Array, Array], Array]
  key: Array
  dropout_keys: Array | None = None


@dataclasses.dataclass(frozen=True)
class ExitLoss:
  """How the exits of one pass are turned into a loss.

  Attributes:
    exits: 'ilsd'; 'none', the last loop alone (vanilla looping); 'all', the
      ground truth at every loop (deep supervision), the earlier exits L_min..
      averaged so that they weigh as much as ILSD's one student.
    min_loops: L_min.
    num_steps: training steps over which lambda falls.
    random_depth: the lowest depth of the teacher, which is then drawn at every
      step, uniformly from there to L_max; 0 is always L_max.
  """

  exits: str
  min_loops: int
  num_steps: int
  random_depth: int = 0

  def __call__(
    self, model: ELT, params: Any, problem: Problem, step: Array
  ) -> tuple[Array, Metrics]:
    """The loss of one batch: (scalar, each of its terms)."""
    most, key, metrics = model.max_loops, problem.key, {}
    if self.random_depth:
      key, key_depth = jax.random.split(key)
      most = jax.random.randint(key_depth, (), self.random_depth, most + 1)
      metrics['depth'] = most
    exit_loop = None
    if self.exits == 'ilsd':
      exit_loop = draw_exit_loop(key, self.min_loops, most)

    def loops(block: Block, h: Array) -> Any:
      count, unroll = model.max_loops, model.unroll_loops
      if self.exits == 'all':
        return loop_states(block, h, count, unroll=unroll)
      if self.random_depth:
        # One program: later loops are skipped and leave the state as it is.
        whole, skip = block, lambda h, i: h
        block = lambda h, i: jax.lax.cond(i < most, whole, skip, h, i)
      return run_loops(block, h, count, exit_loop, unroll=unroll)

    states, head = model.run(
      loops, params, *problem.inputs, keys=problem.dropout_keys
    )
    if self.exits == 'ilsd':
      teacher, student = map(head, states)
      weight = gt_weight(step, self.num_steps)
      terms = {
        'gt_final': problem.ground_truth(teacher),
        'gt_exit': problem.ground_truth(student),
        'distill': problem.distill(student, jax.lax.stop_gradient(teacher)),
      }
      loss = (
        terms['gt_final']
        + weight * terms['gt_exit']
        + (1 - weight) * terms['distill']
      )
      metrics |= {'gt_weight': weight, 'exit_loop': exit_loop}
      return loss, terms | metrics
    if self.exits == 'all':
      exits = states[self.min_loops - 1 :]
      losses = jax.lax.map(
        lambda state: problem.ground_truth(head(state)), exits
      )
      terms = {'gt_final': losses[-1], 'gt_exit': jnp.mean(losses[:-1])}
      return terms['gt_final'] + terms['gt_exit'], terms
    loss = problem.ground_truth(head(states[0]))
    return loss, {'gt_final': loss} | metrics


@dataclasses.dataclass(frozen=True)
class LoopedObjective:
  """What the families share: the loss of a batch, and its telemetry.

  Attributes:
    model: the looped model.
    exit_loss: which exits are trained.
  """

  model: ELT
  exit_loss: ExitLoss

  def problem(
    self, batch: dict[str, Array], key: Array, step: Array
  ) -> Problem:
    """The batch as the family states it; see its `problem`."""
    raise NotImplementedError

  def loss(
    self, params: Any, batch: dict[str, Array], key: Array, step: Array
  ) -> tuple[Array, Metrics]:
    """(loss, metrics), both float32, of a batch; see `problem`."""
    problem = self.problem(batch, key, step)
    return self.exit_loss(self.model, params, problem, step)

  def telemetry(
    self, params: Any, batch: dict[str, Array], key: Array, step: Array
  ) -> Metrics:
    """See `loop_telemetry`; the batch is noised or masked as in training."""
    return loop_telemetry(self.model, params, self.problem(batch, key, step))


def loop_telemetry(
  model: ELT, params: Any, problem: Problem
) -> dict[str, Array]:
  """What each loop does to one batch, 1..2 L_max: [2 L_max] each.

  'state_rms', the root mean square of the state; 'relative_update', that of
  the change by the loop over that of the state before; 'loss', L_GT of the
  exit; 'agreement' of the exit with that of L_max. No dropout.
  """
  h, block, head = model.bind(params, *problem.inputs)
  states = loop_states(block, h, 2 * model.max_loops)
  final = head(states[model.max_loops - 1])

  def look(state: Array) -> tuple[Array, Array]:
    out = head(state)
    return problem.ground_truth(out), problem.agreement(out, final)

  loss, agreement = jax.lax.map(look, states)
  before = jnp.concatenate([h[None], states[:-1]])
  square = lambda x: jnp.square(x.astype(jnp.float32))
  rms = jax.vmap(lambda x: jnp.sqrt(jnp.mean(square(x))))
  return {
    'state_rms': rms(states),
    'relative_update': rms(states - before) / rms(before),
    'loss': loss,
    'agreement': agreement,
  }


def draw_exit_loop(key: Array, min_loops: int, max_loops: int | Array) -> Array:
  """L_int: int32 scalar, uniform over [L_min, L_max - 1]."""
  if isinstance(max_loops, int) and not 1 <= min_loops < max_loops:
    raise ValueError(
      'The student exit needs 1 <= objective.min_loops < model.max_loops, '
      f'got {min_loops} and {max_loops}.'
    )
  return jax.random.randint(key, (), min_loops, max_loops)


def gt_weight(step: Array, num_steps: int) -> Array:
  """lambda: 1 at step 0, 0 from the last step (num_steps - 1) on."""
  return jnp.clip(1.0 - step / max(num_steps - 1, 1), 0.0, 1.0)


def build_exit_loss(config: Any) -> ExitLoss:
  """The exits of an experiment config."""
  o = config.objective
  return ExitLoss(
    o.exits, o.min_loops, config.train.num_steps, o.randomize_max_loops
  )
