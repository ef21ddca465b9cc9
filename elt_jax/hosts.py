"""Several hosts, one program each: joining, writing once, stopping together.

Every host runs the same command. JAX_COORDINATOR_ADDRESS (host:port of host 0),
JAX_NUM_PROCESSES and JAX_PROCESS_ID name them, as launch/tpu_worker.sh sets
them; without these, on Cloud TPU, JAX finds the hosts.
"""

from collections.abc import Callable
import contextlib
import os
import signal
import socket
import time
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

_ALL = 'all have come'
_PLACE = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def join(seconds: float = 300, saves: bool = False) -> None:
  """Waits for every host; to be called before JAX is used.

  Args:
    seconds: after which a host that is named and has not come is missed.
    saves: whether SIGTERM is left to JAX, which tells all hosts of it, as
      `Interrupt` asks. Otherwise it ends the process, as everywhere.

  Raises:
    ValueError: if the hosts cannot be told from what is set, or, where they
      are named, if one of them has not come after `seconds`.
  """
  jax.config.update('jax_enable_preemption_service', saves)
  given = {name: os.environ[name] for name in _PLACE if name in os.environ}
  if given and len(given) < len(_PLACE):
    raise ValueError(
      f'--multihost: {", ".join(given)} is set; set all of '
      f'{", ".join(_PLACE)}, or, on Cloud TPU, none.'
    )
  if not given:
    try:
      jax.distributed.initialize()
    except ValueError as e:
      raise ValueError(
        f'--multihost: this machine is of no slice that JAX knows ({e}). Set '
        f'{", ".join(_PLACE)}, or leave the flag out.'
      ) from e
    return
  address, count, host = given.values()
  if not (count.isdecimal() and host.isdecimal() and int(host) < int(count)):
    raise ValueError(
      f'--multihost: JAX_PROCESS_ID = {host} must be a number below '
      f'JAX_NUM_PROCESSES = {count}.'
    )
  _meet(address, int(count), int(host), seconds)
  jax.distributed.initialize(address, int(count), int(host))


def _meet(address: str, count: int, host: int, seconds: float) -> None:
  """Waits at the address of host 0 for the others.

  JAX would end the process after a while and not say who was missing.
  """
  place, _, port = address.rpartition(':')
  if not (place and port.isdecimal()):
    raise ValueError(
      f'--multihost: JAX_COORDINATOR_ADDRESS = {address} must be host:port.'
    )
  if host == 0:
    verdict = _receive(int(port), set(range(1, count)), seconds)
  else:
    verdict = _report(place, int(port), host, seconds)
  if verdict:
    raise ValueError(f'--multihost: after {seconds:g} s {verdict}.')


def _receive(port: int, missing: set[int], seconds: float) -> str:
  """Host 0: '' once nobody is missing, or who is; told to those who came."""
  deadline = time.monotonic() + seconds
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(socket.create_server(('', port)))
    came = []
    while missing and (left := deadline - time.monotonic()) > 0:
      server.settimeout(left)
      try:
        connection, _ = server.accept()
      except TimeoutError:
        break
      came.append(stack.enter_context(connection))
      connection.settimeout(min(left, 5))
      # Who says nothing, or hangs up, is none of the hosts.
      with contextlib.suppress(OSError):
        missing.discard(int.from_bytes(connection.recv(4)))
    names = ', '.join(map(str, sorted(missing)))
    verdict = f'host {names} has not come' if missing else ''
    for connection in came:
      with contextlib.suppress(OSError):
        connection.sendall((verdict or _ALL).encode())
  return verdict


def _report(place: str, port: int, host: int, seconds: float) -> str:
  """Another host: what host 0 finds."""
  deadline = time.monotonic() + seconds
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection((place, port), timeout=left) as connection:
        connection.sendall(host.to_bytes(4))
        # Host 0 may have begun to wait as late as this one gives up.
        connection.settimeout(left + seconds)
        if verdict := connection.makefile().read():
          return '' if verdict == _ALL else verdict
    except OSError:
      pass
    time.sleep(0.2)  # Not there yet, or ended before it had said anything.
  return f'host 0 does not answer at {place}:{port}'


def once(name: str, write: Callable[[], None]) -> None:
  """Host 0 calls `write`; the others wait for it."""
  if jax.process_index() == 0:
    write()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(holds: bool) -> bool:
  """Whether it holds on every host."""
  if jax.process_count() == 1:
    return holds
  return bool(multihost_utils.process_allgather(np.array(holds)).all())


def fetch(tree: Any) -> Any:
  """Whole numpy arrays of a tree whose arrays are split over devices."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def whole(x: Any) -> np.ndarray:
    if x.is_fully_replicated:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(whole, tree)


class Interrupt:
  """Turns SIGTERM and Ctrl-C into a request to stop after this step.

  A second Ctrl-C interrupts at once. Of several hosts none may stop alone:
  there SIGTERM is left to JAX, which tells all of them, and Ctrl-C saves
  nothing.
  """

  def __init__(self):
    self._asked = False
    self._previous = {}

  def _ask(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._asked = True
    signal.signal(number, self._previous[number])

  def __enter__(self) -> 'Interrupt':
    if jax.process_count() > 1:
      return self
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exc: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def asks(self, step: int) -> bool:
    """Whether to stop after `step`.

    Several hosts agree on a step that none has passed.
    """
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked
