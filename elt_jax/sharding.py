"""From logical axis names to shardings, and never silently.

Parameters name their axes where they are declared (`models/layers.py`), and
`RULES` maps the names onto mesh axes. A name that has no rule, two dimensions
that want one mesh axis, and a dimension that does not divide are errors.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

# logical axis -> mesh axis, mesh axes, or None for replicated.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'layers': None,
  'embed': 'fsdp',
  'heads': 'tensor',
  'mlp': 'tensor',
  'patch': None,
  'vocab': None,
}


def logical_to_spec(names: Sequence[str | None]) -> P:
  """('embed', 'mlp') -> P('fsdp', 'tensor').

  Raises:
    ValueError: on a name without a rule, or two dimensions on one mesh axis.
  """
  unknown = [n for n in names if n is not None and n not in RULES]
  if unknown:
    raise ValueError(
      f'Unknown logical axes {unknown} in {tuple(names)}; the rules know '
      f'{sorted(RULES)}. Use one of them, or add it to sharding.RULES.'
    )
  axes = [None if n is None else RULES[n] for n in names]
  used = [
    a
    for axis in axes
    for a in ((axis,) if isinstance(axis, str) else axis or ())
  ]
  twice = sorted({a for a in used if used.count(a) > 1})
  if twice:
    raise ValueError(
      f'Logical axes {tuple(names)} put two dimensions on mesh axes {twice}: '
      'a mesh axis splits one. Name the other dimension None.'
    )
  return P(*axes)


def padded_batches(count: int, size: int) -> Iterator[np.ndarray]:
  """int32 [size] places of each batch of `count` examples.

  Batches have one shape: the last repeats its last example.
  """
  for start in range(0, count, size):
    index = np.arange(start, start + size, dtype=np.int32)
    yield np.minimum(index, count - 1)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples over `data` and `fsdp`."""
  return NamedSharding(mesh, logical_to_spec(('batch',)))


def constrain(
  x: jax.Array, names: Sequence[str | None], mesh: Mesh | None
) -> jax.Array:
  """Fixes the sharding of an activation by the logical names of its axes.

  Of the first axes, as many as there are names; without a mesh, of none.
  """
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, logical_to_spec(names))
  )


def _check_divides(
  path: str, shape: Sequence[int], spec: P, mesh: Mesh
) -> None:
  for size, axis in zip(shape, spec):
    names = (axis,) if isinstance(axis, str) else axis or ()
    shards = int(np.prod([mesh.shape[name] for name in names]))
    if size % shards:
      raise ValueError(
        f'Parameter {path} {tuple(shape)}: a dimension of {size} does not '
        f'divide over mesh axis {axis} of size {shards}; change '
        f'config.mesh or the model size.'
      )


def param_specs(boxed: Any, mesh: Mesh) -> Any:
  """PartitionSpec of every parameter, from `nn.Partitioned` boxes.

  `boxed` may be abstract (`jax.eval_shape` of `ELT.init`).
  """

  def spec(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not isinstance(leaf, nn.Partitioned):
      raise ValueError(f'Parameter {name} declares no logical axes.')
    spec = logical_to_spec(leaf.names)
    _check_divides(name, leaf.value.shape, spec, mesh)
    return spec

  return jax.tree_util.tree_map_with_path(
    spec, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def like_params(tree: Any, params: Any, specs: Any) -> Any:
  """Specs for a tree that contains copies of the parameter tree.

  Optimizer moments and averages mirror the parameters: a leaf whose path ends
  with a parameter's path and that has its shape is sharded like it; every
  other leaf (counts, the step) is replicated.
  """
  by_path = {}
  for (path, leaf), spec in zip(
    jax.tree_util.tree_flatten_with_path(params)[0],
    jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
  ):
    by_path[tuple(map(str, path))] = (leaf.shape, spec)

  def spec(path, leaf):
    path = tuple(map(str, path))
    for start in range(len(path)):
      shape, found = by_path.get(path[start:], (None, None))
      if shape == leaf.shape:
        return found
    return P()

  return jax.tree_util.tree_map_with_path(spec, tree)


def to_shardings(specs: Any, mesh: Mesh) -> Any:
  """PartitionSpecs -> NamedShardings on `mesh`."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, P),
  )


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """Abstract arrays that say where they go, for restoring."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )


def replicated_share(abstract: Any, shardings: Any) -> float:
  """Share of the bytes of `abstract` that every device holds in full."""
  total = replicated = 0
  for leaf, sharding in zip(
    jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True
  ):
    size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    total += size
    replicated += size * sharding.is_fully_replicated
  return replicated / max(total, 1)
