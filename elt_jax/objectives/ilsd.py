"""Intra-Loop Self Distillation: which exits are trained, and on what.

One forward pass of L_max loops gives the teacher (the last state) and the
student (the state after L_int < L_max loops); with the ground-truth loss L_GT
and the distillation loss L_dist of the family (ELT, arXiv 2604.09168):

    L = L_GT(F_Lmax)
      + lambda L_GT(F_Lint) + (1 - lambda) L_dist(F_Lint, sg F_Lmax)

lambda falls linearly from 1 at the first step to 0 at the last; L_int is drawn
once per step, uniformly from L_min..L_max-1, the same for every example.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from elt_jax.models.elt import ELT
from elt_jax.models.looped import loop_states, run_loops

Array = jax.Array
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ExitLoss:
  """How the exits of one pass are turned into a loss.

  Attributes:
    exits: 'ilsd'; 'none', the last loop alone (vanilla looping); 'all', the
      ground truth at every loop (deep supervision), the earlier exits L_min..
      averaged so that they weigh as much as ILSD's one student.
    min_loops: L_min.
    num_steps: training steps over which lambda falls.
  """

  exits: str
  min_loops: int
  num_steps: int

  def __call__(
    self,
    model: ELT,
    params: Any,
    inputs: tuple[Array, ...],
    ground_truth: Callable[[Array], Array],
    distill: Callable[[Array, Array], Array],
    key: Array,
    step: Array,
    dropout_keys: Array | None = None,
  ) -> tuple[Array, Metrics]:
    """The loss of one batch.

    Args:
      model: the looped model.
      params: its parameters.
      inputs: what `model.embed` takes.
      ground_truth: prediction -> scalar, L_GT.
      distill: (student, teacher) -> scalar, L_dist; the teacher comes with
        its gradient stopped.
      key: key of this step, from which L_int is drawn.
      step: int32 scalar, for lambda.
      dropout_keys: [b], one per example; None for models without dropout.

    Returns:
      (loss, metrics): the scalar and each of its terms.
    """
    h, block, head = model.bind(params, *inputs, keys=dropout_keys)
    if self.exits == 'ilsd':
      exit_loop = draw_exit_loop(key, self.min_loops, model.max_loops)
      h, h_exit = run_loops(
        block, h, model.max_loops, exit_loop, unroll=model.unroll_loops
      )
      teacher, student = head(h), head(h_exit)
      weight = gt_weight(step, self.num_steps)
      terms = {
        'gt_final': ground_truth(teacher),
        'gt_exit': ground_truth(student),
        'distill': distill(student, jax.lax.stop_gradient(teacher)),
      }
      loss = (
        terms['gt_final']
        + weight * terms['gt_exit']
        + (1 - weight) * terms['distill']
      )
      return loss, terms | {'gt_weight': weight, 'exit_loop': exit_loop}
    if self.exits == 'all':
      states = loop_states(block, h, model.max_loops, unroll=model.unroll_loops)
      exits = states[self.min_loops - 1 :]
      losses = jax.lax.map(lambda state: ground_truth(head(state)), exits)
      terms = {'gt_final': losses[-1], 'gt_exit': jnp.mean(losses[:-1])}
      return terms['gt_final'] + terms['gt_exit'], terms
    h, _ = run_loops(block, h, model.max_loops, unroll=model.unroll_loops)
    loss = ground_truth(head(h))
    return loss, {'gt_final': loss}


def draw_exit_loop(key: Array, min_loops: int, max_loops: int) -> Array:
  """L_int: int32 scalar, uniform over [L_min, L_max - 1]."""
  if not 1 <= min_loops < max_loops:
    raise ValueError(
      'The student exit needs 1 <= objective.min_loops < model.max_loops, '
      f'got {min_loops} and {max_loops}.'
    )
  return jax.random.randint(key, (), min_loops, max_loops)


def gt_weight(step: Array, num_steps: int) -> Array:
  """lambda: 1 at step 0, 0 from the last step (num_steps - 1) on."""
  return jnp.clip(1.0 - step / max(num_steps - 1, 1), 0.0, 1.0)
