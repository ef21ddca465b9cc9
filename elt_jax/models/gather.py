"""Layers that are gathered once a step, not once a loop.

Parameters sharded over `fsdp` must be whole where they are used. Left to the
compiler they are gathered at every loop, and their gradients are reduced over
devices at every loop: a looped model then sends as much as an unlooped one of
its depth. Here all loops run on a device's own part of the batch, between one
gather and, in the backward pass, one reduction; of a batch that is trained in
parts, one of each for every part. The price is memory: N layers are whole on
every device through the step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
  specs: Any,
  mesh: Mesh,
) -> Any:
  """`loops(block, h0)`, its layers gathered before and reduced after.

  Args:
    loops: (block, h) -> tree of states [..., b, s, d].
    build_block: makes the block; it must not constrain shardings.
    operands: of the block, sharded as everywhere.
    specs: PartitionSpec of every array of `operands.layers`.
    mesh: of the run; its axis `tensor` stays with the compiler.
  """
  batch = sharding.logical_to_spec(('batch',))
  is_spec = lambda x: isinstance(x, P)
  specs = jax.tree.map(lambda x: _over_fsdp(x, mesh), specs, is_leaf=is_spec)

  def on_device(operands: Operands) -> Any:
    def whole(path: Any, x: Array, spec: P) -> _Whole:
      dtype = operands.h0.dtype if path[-1].key == 'kernel' else x.dtype
      return _Whole(*_gather(x, spec, dtype, flat=mesh.shape['tensor'] == 1))

    layers = jax.tree_util.tree_map_with_path(whole, operands.layers, specs)

    def block(h: Array, loop_index: Array) -> Array:
      used = jax.tree.map(
        lambda w: _use(*w), layers, is_leaf=lambda w: isinstance(w, _Whole)
      )
      return build_block(operands._replace(layers=used))(h, loop_index)

    return loops(block, operands.h0)

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


def _over_fsdp(spec: P, mesh: Mesh) -> P:
  """Which dimension has to be gathered."""
  split = mesh.shape['fsdp'] > 1
  return P(*(axis if split and axis == 'fsdp' else None for axis in spec))


class _Whole(NamedTuple):
  """A whole parameter, and zeros that its gradient is summed into.

  The sum over loops is then of float32, and the parameter need not be: a
  second copy of the layers would be whole on every device.
  """

  value: Array
  total: Array


@jax.custom_vjp
def _use(value: Array, total: Array) -> Array:
  """`value`; its gradient goes to `total`."""
  del total
  return value


_use.defvjp(
  lambda value, total: (value, None),
  lambda _, gradient: (jnp.zeros_like(gradient), gradient.astype(jnp.float32)),
)


def _gather(x: Array, spec: P, dtype: Any, flat: bool) -> tuple[Array, Array]:
  """A device's shard of a parameter -> (the whole parameter, zeros).

  Both ways it travels in `dtype`, in which it is used. `flat` joins the axes
  behind the gathered one for the reduction: gradients of four axes and more
  the compiler for TPU sums in whole and cuts then, at twice the bytes.
  """
  dimension = spec.index('fsdp') if 'fsdp' in spec else None

  @jax.custom_vjp
  def gather(x: Array) -> tuple[Array, Array]:
    value = x.astype(dtype)
    if dimension is not None:
      value = jax.lax.all_gather(value, 'fsdp', axis=dimension, tiled=True)
    rest = tuple(axis for axis in _AXES if axis not in spec)
    value = jax.lax.pcast(value, rest, to='varying')
    return value, jnp.zeros_like(value, jnp.float32)

  def reduce(_: None, gradients: tuple[Array, Array]) -> tuple[Array]:
    total = gradients[1].astype(dtype)
    if dimension is None:
      return (jax.lax.psum(total, _AXES).astype(x.dtype),)
    if flat and total.ndim > dimension + 2:
      total = total.reshape(*total.shape[: dimension + 1], -1)
    shard = jax.lax.psum_scatter(
      total, 'fsdp', scatter_dimension=dimension, tiled=True
    )
    return (jax.lax.psum(shard, 'data').reshape(x.shape).astype(x.dtype),)

  gather.defvjp(lambda x: (gather(x), None), reduce)
  return gather(x)
