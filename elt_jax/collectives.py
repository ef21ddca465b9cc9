"""What a compiled program sends between devices: read from its text.

A collective in the body of a loop runs once an iteration, and loops of loops
multiply. Bytes are those that a device receives in one run of the program, for
a group of g devices and the whole array of S bytes:

    all-gather, reduce-scatter, all-to-all   S (g - 1) / g
    all-reduce                             2 S (g - 1) / g
    collective-permute                     S

The compiler for TPU hides some gathers and scatters behind matrix products, in
rings of collective-permutes, and joins an all-reduce with the slice that
follows; both are counted as what they do. Others it begins in one instruction,
carries on inside of later matrix products and ends in a last one; they are
counted where they begin.
"""

import collections
from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf' = (.*?) ({"|".join(KINDS)})(-start)?\(')
_CALLED = re.compile(
  r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)'
  r'|(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_GOES_ON = re.compile(
  r'^\s*(?:ROOT )?%?async-collective-done[\w.\-]* = '
  r'|calls=%?async_collective_fusion'
)
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction of a program.

  Attributes:
    kind: one of `KINDS`, by what it does.
    times: how often a run of the program executes it; more than once in loops.
    bytes: that a device receives at each time.
    largest: bytes of the largest whole array that it works on.
  """

  kind: str
  times: int
  bytes: int
  largest: int


def read(text: str, num_devices: int) -> list[Collective]:
  """The collectives of a compiled program, from `compiled.as_text()`."""
  computations, entry = _split(text)
  found = []
  for name, times in _runs(computations, entry).items():
    for line in computations[name]:
      if match := _COLLECTIVE.search(line):
        found.append(_collective(match, name, line, times, num_devices))
  return found


def totals(found: list[Collective]) -> dict[str, dict[str, int]]:
  """{kind: {'count', 'bytes'}} of a run of the program."""
  sums = {kind: {'count': 0, 'bytes': 0} for kind in KINDS}
  for c in found:
    sums[c.kind]['count'] += c.times
    sums[c.kind]['bytes'] += c.times * c.bytes
  return {kind: total for kind, total in sums.items() if total['count']}


def _split(text: str) -> tuple[dict[str, list[str]], str]:
  """(computation -> its lines, name of the first to run)."""
  computations, entry, lines = {}, '', []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = computations.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    else:
      lines.append(line)
  return computations, entry


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often each computation runs; of a conditional, every branch."""
  runs = collections.Counter()

  def walk(name: str, times: int) -> None:
    runs[name] += times
    for called, trips in _calls(computations, computations[name]):
      walk(called, times * trips)

  walk(entry, 1)
  return runs


def _calls(
  computations: dict[str, list[str]], lines: list[str]
) -> Iterator[tuple[str, int]]:
  """(computation, how often) for all that the lines call."""
  for line in lines:
    if match := _WHILE.search(line):
      yield match[2], _trips(line, computations[match[1]])
      continue
    if _GOES_ON.search(line):
      continue
    for one, several in _CALLED.findall(line):
      for name in re.findall(r'[\w.\-]+', one or several):
        if name in computations:
          yield name, 1


def _trips(line: str, condition: list[str]) -> int:
  """How often a loop runs, from its own words or the bound it compares with.

  Loops over layers and loops count up from 0. One whose bound is no constant
  counts once.
  """
  if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
    return int(match[1])
  bounds = re.findall(r' constant\((\d+)\)', '\n'.join(condition))
  return max(map(int, bounds), default=1)


def _collective(
  match: re.Match, computation: str, line: str, times: int, num_devices: int
) -> Collective:
  result, kind, started = match.groups()
  arrays = re.findall(r'(\w+)\[([\d,]*)\]', result)
  if started and kind != 'all-reduce':  # (operands, results, counters)
    arrays = [a for a in arrays if a != ('u32', '')]
    arrays = arrays[len(arrays) // 2 :]
  sizes = [_bytes(dtype, shape) for dtype, shape in arrays]
  g = _group(line, num_devices)
  if kind == 'reduce-scatter':
    sizes = [g * size for size in sizes]
  if kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    kind = 'reduce-scatter'
  share = {'collective-permute': 1.0, 'all-reduce': 2 * (g - 1) / g}
  received = round(sum(sizes) * share.get(kind, (g - 1) / g))
  if kind == 'collective-permute' and 'windowed_dot_general' in computation:
    scatters = '_rs' in computation
    kind = 'reduce-scatter' if scatters else 'all-gather'
    sizes = [g * size for size in sizes]
  return Collective(kind, times, received, max(sizes, default=0))


def _bytes(dtype: str, shape: str) -> int:
  """Of an array, as bf16[2,24]; a dtype has its bits in its name."""
  bits = re.match(r'[a-z]+(\d+)', dtype)
  each = int(bits[1]) // 8 if bits else int(dtype == 'pred')
  return each * math.prod(int(n) for n in shape.split(',') if n)


def _group(line: str, num_devices: int) -> int:
  """Devices that take part together."""
  if match := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(match[1].split(','))
  if match := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(match[1])
  if match := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r'\w+', match[2]))
  return num_devices
