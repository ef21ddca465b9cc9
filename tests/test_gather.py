"""Layers gathered once a step: the same numbers, fewer bytes."""

import functools

import jax
import numpy as np
import pytest

from elt_jax import collectives
from elt_jax.sharding import batch_sharding
from tests.conftest import tiny_config
from tests.helpers import Stack, make_batch

FSDP = (('data', 1), ('fsdp', 8), ('tensor', 1))
ALL = (('data', 2), ('fsdp', 2), ('tensor', 2))
DATA = (('data', 8), ('fsdp', 1), ('tensor', 1))
SCANNED = (
  ('model.num_layers', 2),
  ('model.scan_layers', True),
  ('model.remat', 'layer'),
)


@functools.cache
def two_steps(gather, mesh, changes=()):
  """(state, metrics, collectives) of two steps on eight devices."""
  config = tiny_config()
  config.update_from_flattened_dict(
    {'model.width': 32, 'model.num_heads': 4, 'mesh.gather': gather}
    | dict(changes)
  )
  stack = Stack(config, dict(mesh))
  state, step = stack.create(), stack.step()
  batch = jax.device_put(make_batch(config), batch_sharding(stack.mesh))
  text = step.lower(state, batch).compile().as_text()
  for _ in range(2):
    state, metrics = step(state, batch)
  return *jax.device_get((state, metrics)), collectives.read(text, 8)


@pytest.mark.parametrize(
  'mesh,changes',
  [
    (FSDP, SCANNED),
    pytest.param(
      ALL,
      (
        ('model.loop_embedding', True),
        ('model.input_injection', True),
        ('objective.randomize_max_loops', 2),
      ),
      marks=pytest.mark.slow,
    ),
    pytest.param(DATA, (('objective.exits', 'all'),), marks=pytest.mark.slow),
  ],
)
def test_both_ways_take_the_same_steps(mesh, changes):
  (one, one_metrics, _), (two, two_metrics, _) = (
    two_steps(gather, mesh, changes) for gather in ('use', 'step')
  )
  for name, value in one_metrics.items():
    np.testing.assert_allclose(value, two_metrics[name], rtol=1e-5)
  compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
  jax.tree.map(compare, one.params, two.params)


def sent(found, *kinds, least=0):
  """Bytes that a device receives in a step, of large arrays alone."""
  return sum(
    c.times * c.bytes for c in found if c.kind in kinds and c.largest >= least
  )


# The smallest kernel of a layer: 4 heads of 8, times 32.
KERNEL = 4 * 32 * 32


def test_no_parameter_travels_in_a_loop():
  *_, use = two_steps('use', FSDP, SCANNED)
  *_, step = two_steps('step', FSDP, SCANNED)
  large = lambda found: [c for c in found if c.largest >= KERNEL]
  assert max(c.times for c in large(use)) == 2 * 3  # N layers, L loops.
  assert max(c.times for c in large(step)) == 1
  # The four kernels of the layers are reduced to their shards, not in whole.
  scattered = [c for c in step if c.kind == 'reduce-scatter']
  sizes = [2 * KERNEL * n for n in (1, 3, 4, 4)]
  assert sorted(c.largest for c in scattered)[-4:] == sizes
  whole = [c for c in step if c.kind == 'all-reduce' and c.bytes]
  # Outside the loops some are, the embedding of t above all.
  assert max(c.largest for c in whole) == 4 * 256 * 32
  kinds = collectives.KINDS
  assert sent(step, *kinds) < sent(use, *kinds) / 2


def test_looped_layers_are_gathered_as_often_as_they_are_unique():
  """At one depth, N layers looped L times gather less than a third of N L."""
  *_, looped = two_steps('step', FSDP, SCANNED)
  unlooped = {
    'model.num_layers': 6,
    'model.max_loops': 1,
    'objective.exits': 'none',
  }
  changes = tuple((dict(SCANNED) | unlooped).items())
  *_, unique = two_steps('use', FSDP, changes)
  gathered = [
    sent(found, 'all-gather', least=KERNEL) for found in (looped, unique)
  ]
  assert 0 < gathered[0] < gathered[1] / 3


def test_a_program_is_read():
  """Loops multiply, by their own count or the bound they compare with."""
  text = """HloModule made

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %g = f32[16]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[16]) tuple(%i, %g)
}

%inner_condition (p: (s32[], f32[16])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %r = bf16[4,8] reduce-scatter(%y), replica_groups={{0,1},{2,3}}
  ROOT %w = (s32[], f32[16]) while(%p), condition=%inner_condition, \
body=%inner_body
}

%condition (p: (s32[], f32[16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (p: f32[32]) -> f32[4] {
  %whole = f32[32]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %part = f32[4] dynamic-slice(%whole, %i)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[16]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %f = f32[4] fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  %s = (bf16[2,6], bf16[2,24]) all-gather-start(%z), \
replica_groups=mesh['a'=2,'b'=4] {'b'}
  %b = ((f8e5m2[24,2]), f8e5m2[3,2], u32[], u32[]) reduce-scatter-start(%z), \
replica_groups={}
  %d = (pred[9]{0}, pred[9]{0}, u32[], u32[]) collective-permute-start(%z), \
source_target_pairs={{0,1}}
  ROOT %o = (f32[8], f32[2]) all-reduce(%u, %v), replica_groups={}
}
"""
  found = collectives.read(text, 8)
  assert sorted((c.kind, c.times, c.bytes, c.largest) for c in found) == [
    ('all-gather', 1, 96 * 3 // 4, 96),
    ('all-gather', 15, 64 * 3 // 4, 64),
    ('all-reduce', 1, 2 * 40 * 7 // 8, 32),
    ('collective-permute', 1, 9, 9),
    ('reduce-scatter', 1, 48 * 7 // 8, 48),
    ('reduce-scatter', 1, 128 * 7 // 8, 128),
    ('reduce-scatter', 3, 2 * 64 // 2, 128),
  ]
  assert collectives.totals(collectives.read(text, 8))['all-gather'] == {
    'count': 16,
    'bytes': 15 * 48 + 72,
  }


def test_what_goes_on_behind_products_is_counted_once():
  """As the compiler for v5e writes it: begun, carried on in a loop, ended."""
  text = """HloModule made

%begins.1 (p: f32[1]) -> (f32[1], f32[8]) {
  %a = f32[8]{0} all-gather(%p), channel_id=4, replica_groups={}
}

%async_collective_fusion.2 (p: f32[1]) -> f32[8] {
  %b = f32[8]{0} all-gather(%p), channel_id=4, replica_groups={}
}

%ends.3 (p: f32[1]) -> f32[8] {
  %c = f32[8]{0} all-gather(%p), channel_id=4, replica_groups={}
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %m = f32[8] fusion(%p), kind=kOutput, calls=%async_collective_fusion.2
}

%condition (p: (s32[], f32[16])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %async-collective-start.1 = (f32[1], f32[8]) fusion(%p), calls=%begins.1
  %w = (s32[], f32[16]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %async-collective-done.1 = f32[8] fusion(%w), kind=kCustom, calls=%ends.3
  ROOT %f = f32[8] fusion(%async-collective-done.1), calls=%begins.1
}
"""
  found = collectives.totals(collectives.read(text, 8))
  assert found == {'all-gather': {'count': 2, 'bytes': 2 * 28}}
