"""The Elastic Looped Transformer: embedding, N shared layers, one head.

`ELT.bind` turns parameters and one batch of inputs into the three things the
loop needs, and the caller composes them:

    h, block, head = model.bind(params, *inputs)
    h_final, h_exit = run_loops(block, h, num_loops, exit_loop)
    final, exit = head(h_final), head(h_exit)

Training goes through `ELT.run`, which may gather the layers once for all loops.

Parameters are a nested dict {'embed', 'layers', 'head'[, 'loop']}; the arrays
of 'layers' are stacked over the N unique layers on their first axis.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from elt_jax import sharding
from elt_jax.mesh import batch_shards
from elt_jax.models.gather import Operands, gather_once
from elt_jax.models.looped import Block, run_loops, run_loops_dynamic

Array = jax.Array
Params = Any
Head = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class ELT:
  """A looped transformer as a pure function of its parameters.

  Attributes:
    embed: module (inputs...) -> (tokens [b, s, d], conditioning), the latter
      an array that layers and head see unchanged at every loop.
    layer: module of one unique layer, with `condition` and `__call__`.
    head: module (tokens, conditioning) -> prediction.
    inputs: shapes and dtypes of what `embed` takes, for one example.
    num_layers: N.
    max_loops: L_max, the loops of the teacher in training.
    scan_layers: scans over the N layers in place of unrolling them: smaller
      programs, slower on CPU.
    unroll_loops: unrolls the training loop too: faster on CPU, and compile
      time grows with L.
    remat: what the backward pass recomputes. 'none'; 'layer' each layer;
      'loop' each application of the block; 'dots' all but matrix products.
    residual_scale: multiplies every residual update; 1/L_max is the "1/L"
      rule for correlated updates. 1 in the paper.
    input_injection: adds the embedded input again before every later loop.
      Off in the paper.
    loop_embedding: module of the loop index, or None as in the paper.
    gather: when `run` makes layers whole that are sharded over `fsdp`, and
      sums their gradients over devices. 'step', once; 'use', wherever they are
      used, at every loop again. The same for one loop, or one device.
    mesh: mesh of the activation constraints; None leaves them out.
  """

  embed: nn.Module
  layer: nn.Module
  head: nn.Module
  inputs: tuple[jax.ShapeDtypeStruct, ...]
  num_layers: int
  max_loops: int
  scan_layers: bool = False
  unroll_loops: bool = False
  remat: str = 'none'
  residual_scale: float = 1.0
  input_injection: bool = False
  loop_embedding: nn.Module | None = None
  gather: str = 'step'
  mesh: jax.sharding.Mesh | None = None

  def example_inputs(self) -> tuple[Array, ...]:
    """Zeros of the shapes `init` takes, a batch of one."""
    return tuple(jnp.zeros((1, *x.shape), x.dtype) for x in self.inputs)

  def init(self, key: Array, *inputs: Array) -> Params:
    """Initial parameters, boxed with their logical axes (`nn.Partitioned`)."""
    key_embed, key_layers, key_head, key_loop = jax.random.split(key, 4)
    (h, c), embed = self.embed.init_with_output(key_embed, *inputs)
    one_layer = lambda k: self.layer.init(k, h, c, method='parameters')[
      'params'
    ]
    stacked = jax.vmap(one_layer)(jax.random.split(key_layers, self.num_layers))
    params = {
      'embed': embed['params'],
      'layers': nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: 'layers'}),
      'head': self.head.init(key_head, h, c)['params'],
    }
    if self.loop_embedding is not None:
      params['loop'] = self.loop_embedding.init(key_loop, 0)['params']
    return params

  def bind(
    self, params: Params, *inputs: Array, keys: Array | None = None
  ) -> tuple[Array, Block, Head]:
    """(h, block, head) of one batch: what the loop functions take.

    Args:
      params: nested dict as `init` gives, unboxed.
      *inputs: what `embed` takes, batch first.
      keys: [b], one per example, for the dropout of models that have it; None
        turns dropout off.

    Returns:
      h: [b, s, d] embedded input; block: (h, loop_index) -> h; head: h ->
      prediction.
    """
    operands, head = self._operands(params, *inputs, keys=keys)
    return operands.h0, self._block(operands), head

  def run(
    self,
    loops: Callable[[Block, Array], Any],
    params: Params,
    *inputs: Array,
    keys: Array | None = None,
  ) -> tuple[Any, Head]:
    """(`loops(block, h)`, head), the layers gathered as `gather` says.

    Args:
      loops: (block, h) -> tree of states [..., b, s, d], as of `models.looped`.
      params, inputs, keys: as for `bind`.
    """
    operands, head = self._operands(params, *inputs, keys=keys)
    split = self.mesh is not None and batch_shards(self.mesh) > 1
    if self.gather == 'use' or self.max_loops == 1 or not split:
      return loops(self._block(operands), operands.h0), head
    boxed = jax.eval_shape(
      lambda: self.init(jax.random.key(0), *self.example_inputs())
    )
    # Every device sees its own part of the batch: nothing to constrain.
    inside = dataclasses.replace(self, mesh=None)
    states = gather_once(
      loops,
      inside._block,
      operands,
      sharding.param_specs(boxed['layers'], self.mesh),
      self.mesh,
    )
    return states, head

  def _operands(
    self, params: Params, *inputs: Array, keys: Array | None
  ) -> tuple[Operands, Head]:
    with jax.named_scope('embed'):
      h, c = self.embed.apply(
        {'params': params['embed']}, *inputs, **_dropout(keys, 0)
      )
    h = sharding.constrain(h, ('batch',), self.mesh)
    with jax.named_scope('condition'):
      condition = lambda p: self.layer.apply(
        {'params': p}, c, method='condition'
      )
      modulations = jax.vmap(condition)(params['layers'])

    def head(h: Array) -> Array:
      with jax.named_scope('head'):
        return self.head.apply({'params': params['head']}, h, c)

    loop = params.get('loop')
    return Operands(params['layers'], modulations, h, loop, keys), head

  def apply(
    self,
    params: Params,
    *inputs: Array,
    num_loops: int | Array,
    exit_loop: int | Array | None = None,
  ) -> tuple[Array, Array | None]:
    """Predictions after `num_loops` loops and, if asked, at `exit_loop`.

    A Python int runs the differentiable scan, an array the traced loop.
    """
    h, block, head = self.bind(params, *inputs)
    if isinstance(num_loops, int):
      h, h_exit = run_loops(
        block, h, num_loops, exit_loop, unroll=self.unroll_loops
      )
    else:
      h, h_exit = run_loops_dynamic(block, h, num_loops, exit_loop)
    return head(h), None if exit_loop is None else head(h_exit)

  def _block(self, operands: Operands) -> Block:
    """One application of the N layers: g in the paper."""
    layers, modulations, h0, loop, keys = operands
    stacked = (layers, modulations, jnp.arange(self.num_layers))
    # In a scan nothing can merge the recomputation with the forward pass;
    # unrolled, as a scan of one loop is, the compiler would, and undo it.
    unrolled = self.unroll_loops or self.max_loops == 1
    remat = functools.partial(jax.checkpoint, prevent_cse=unrolled)

    def layer(h: Array, layer_params: tuple, loop_index: Array) -> Array:
      p, modulation, n = layer_params
      # A mask of its own for every layer of every loop; 0 is the embedding's.
      site = 1 + loop_index * self.num_layers + n
      return self.layer.apply(
        {'params': p},
        h,
        modulation,
        self.residual_scale,
        **_dropout(keys, site),
      )

    if self.remat == 'layer':
      layer = remat(layer)
    # Sliced here, outside the loop but for `gather_once`, so that each layer's
    # gradient is summed over loops on its own and stacked once.
    take = lambda n: jax.tree.map(lambda x: x[n], stacked)
    unstacked = [take(n) for n in range(self.num_layers)]

    def block(h: Array, loop_index: Array) -> Array:
      if self.input_injection:
        h = h + jnp.where(loop_index > 0, h0, 0)
      if self.loop_embedding is not None:
        h = h + self.loop_embedding.apply({'params': loop}, loop_index)
      with jax.named_scope('block'):
        if self.scan_layers:
          h, _ = jax.lax.scan(
            lambda h, p: (layer(h, p, loop_index), None), h, stacked
          )
        else:
          for layer_params in unstacked:
            h = layer(h, layer_params, loop_index)
      return sharding.constrain(h, ('batch',), self.mesh)

    if self.remat == 'loop':
      return remat(block)
    if self.remat == 'dots':
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      return remat(block, policy=policy)
    return block


def _dropout(keys: Array | None, site: int | Array) -> dict[str, Array]:
  """The argument that turns dropout on, for modules that have it."""
  if keys is None:
    return {}
  return {'keys': jax.vmap(lambda k: jax.random.fold_in(k, site))(keys)}
