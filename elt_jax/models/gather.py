"""Layers that are gathered once a step, not once a loop.

Parameters sharded over `fsdp` must be whole where they are used. Left to the
compiler they are gathered at every loop, and their gradients are reduced over
devices at every loop: a looped model then sends as much as an unlooped one of
its depth. Here all loops run on a device's own part of the batch, between one
gather and, in the backward pass, one reduction. The price is memory: N layers
are whole on every device through the step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elt_jax import sharding
from elt_jax.models.looped import Block

Array = jax.Array
# The mesh axes that split the batch.
_AXES = ('data', 'fsdp')


class Operands(NamedTuple):
  """What a block works with besides its state.

  Attributes:
    layers: parameters of the N layers, stacked on the first axis.
    modulations: what conditions each layer, [N, b, ...]; a tree, or None.
    h0: [b, s, d] embedded input.
    loop: parameters of the loop embedding, or None.
    keys: [b], one per example, for dropout, or None.
  """

  layers: Any
  modulations: Any
  h0: Array
  loop: Any = None
  keys: Array | None = None


def gather_once(
  loops: Callable[[Block, Array], Any],
  build_block: Callable[[Operands], Block],
  operands: Operands,
  names: Any,
  mesh: Mesh,
) -> Any:
  """`loops(block, h0)`, its layers gathered before and reduced after.

  Args:
    loops: (block, h) -> tree of states [..., b, s, d].
    build_block: makes the block; it must not constrain shardings.
    operands: of the block, sharded as everywhere.
    names: logical axes of every array of `operands.layers`.
    mesh: of the run; its axis `tensor` stays with the compiler.
  """
  batch = sharding.logical_to_spec(('batch',))
  is_names = lambda x: isinstance(x, tuple)
  specs = jax.tree.map(lambda x: _spec(x, mesh), names, is_leaf=is_names)

  def on_device(operands: Operands) -> Any:
    def whole(path: Any, x: Array, spec: P) -> Array:
      dtype = operands.h0.dtype if path[-1].key == 'kernel' else x.dtype
      return _whole(x, spec, dtype, flat=mesh.shape['tensor'] == 1)

    layers = jax.tree_util.tree_map_with_path(whole, operands.layers, specs)
    operands = operands._replace(layers=layers)
    return loops(build_block(operands), operands.h0)

  states = jax.eval_shape(lambda h: loops(lambda h, i: h, h), operands.h0)
  run = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(Operands(specs, P(None, *batch), batch, P(), batch),),
    out_specs=jax.tree.map(
      lambda x: P(*(None,) * (x.ndim - 3), *batch), states
    ),
    axis_names=set(_AXES),
  )
  return run(operands)


def _spec(names: Sequence[str | None], mesh: Mesh) -> P:
  """Which dimension has to be gathered."""
  split = mesh.shape['fsdp'] > 1
  spec = sharding.logical_to_spec(names)
  return P(*(axis if split and axis == 'fsdp' else None for axis in spec))


def _whole(x: Array, spec: P, dtype: Any, flat: bool) -> Array:
  """A device's shard of a parameter -> the whole parameter.

  It travels in the dtype in which it is used, as its gradient does, and the
  gradient is summed over loops in its own. `flat` joins the axes behind the
  gathered one on the way: the gradients of arrays of four axes and more, the
  compiler for TPU sums in whole and cuts then, at twice the bytes.
  """
  kept, x = x.dtype, x.astype(dtype)
  if 'fsdp' in spec:
    dimension = spec.index('fsdp')
    behind = x.shape[dimension + 1 :]
    if flat and len(behind) > 1:
      x = x.reshape(*x.shape[: dimension + 1], -1)
    x = jax.lax.all_gather(x, 'fsdp', axis=dimension, tiled=True)
    x = x.reshape(*x.shape[: dimension + 1], *behind)
  # Here, before the loops, it begins to differ from device to device: so here
  # its gradient is summed over those that hold the same.
  same = tuple(axis for axis in _AXES if axis not in spec)
  return jax.lax.pcast(x, same, to='varying').astype(kept)
