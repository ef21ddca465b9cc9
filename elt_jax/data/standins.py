"""What stands in for an example that cannot be read."""

from collections.abc import Callable, Sequence
import logging
import threading
from typing import Any

log = logging.getLogger(__name__)


class StandIns:
  """Reads one of many files, or the next that can be read in its place.

  The next is that in the order of the list, and cyclically. Any number of
  threads may read at once.

  Attributes:
    unreadable: name -> reason, of the files passed over so far, be it for a
      part of them.
  """

  def __init__(self, names: Sequence[Any], kind: str, skip: bool):
    """Reads nothing.

    Args:
      names: of the files, for messages.
      kind: what they are, for messages, as in 'videos'.
      skip: data.skip_unreadable; without it, nothing stands in.
    """
    self._names, self._kind, self._skip = names, kind, skip
    self.unreadable: dict[Any, str] = {}
    self._lock = threading.Lock()

  def read(self, index: int, read: Callable[[int], Any]) -> Any:
    """`read(index)`, or of the next index of which it raises no ValueError.

    Raises:
      ValueError: that of `read`, or with `skip`, if it raises one for all.
    """
    count = len(self._names)
    for i in range(index, index + count):
      # One passed over before is tried again: a file may be damaged in parts
      # only, and what an example is must not depend on earlier ones.
      try:
        return read(i % count)
      except ValueError as e:
        if not self._skip:
          raise ValueError(
            f'{e} Replace the file, or set data.skip_unreadable=True to pass '
            'over all such files.'
          ) from e
        self._pass_over(self._names[i % count], str(e))
    raise ValueError(
      f'None of the {count} {self._kind} can be read: '
      f'{self.unreadable[self._names[0]]}'
    )

  def _pass_over(self, name: Any, reason: str) -> None:
    with self._lock:
      if name in self.unreadable:  # Another reader was first.
        return
      self.unreadable[name] = reason
      log.warning(
        '%s Passed over, with %d of %d %s so far.',
        reason,
        len(self.unreadable),
        len(self._names),
        self._kind,
      )
