"""Checkpoints of a run: the only file that knows Orbax.

A step directory holds four items: `ema` (all that sampling reads), `state`
(step, parameters, optimizer), `data` (the position of the loader) and `meta`.
Saving is asynchronous; Orbax writes under a temporary name and renames, or, in
a bucket, where nothing can be renamed, ends with a file that says the step is
whole: a killed run leaves whole steps and, at most, one that is ignored. A step
that is damaged all the same, on whichever host that shows, is passed over with
a warning, and the one before it is used. A disk or bucket that cannot be
reached is no damage, and an error.
"""

from collections.abc import Callable
import logging
import time
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from elt_jax import files, hosts
from elt_jax.train_state import TrainState

log = logging.getLogger(__name__)

FORMAT = 1
_COMMITTED = 'commit_success.txt'  # Written last by Orbax, into a bucket.


def saved_steps(workdir: epath.PathLike) -> list[int]:
  """Steps saved whole, oldest first.

  `Checkpoints.steps` without Orbax, which asks JAX for the devices: they are
  then taken, and who only looks on has no use for them.
  """
  directory = epath.Path(workdir) / 'checkpoints'
  if not directory.is_dir():
    return []
  steps = [path for path in directory.iterdir() if path.name.isdigit()]
  if files.is_address(workdir):  # Where nothing can be renamed.
    steps = [path for path in steps if (path / _COMMITTED).exists()]
  return sorted(int(path.name) for path in steps)


class Checkpoints:
  """The checkpoints of one workdir; a context manager that waits on exit."""

  def __init__(
    self,
    workdir: epath.PathLike,
    keep: int | None = None,
    keep_every: int = 0,
    read_only: bool = False,
  ):
    """Opens `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: how many of the newest steps stay; None keeps all.
      keep_every: besides, every step that is a multiple of this; 0 is none.
      read_only: for sampling beside a run: creates and deletes nothing.
    """
    workdir = epath.Path(workdir)
    if not files.is_address(workdir):
      workdir = workdir.resolve()  # Orbax takes no relative paths.
    self._directory = workdir / 'checkpoints'
    self._read_only = read_only
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep,
      keep_period=keep_every or None,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
    )
    for path in self._directory.glob('*.orbax-checkpoint-tmp*'):
      log.warning('%s is what a killed save left behind: ignored.', path)
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager | None:
    if self._read_only and not self._directory.is_dir():
      return None
    return ocp.CheckpointManager(
      self._directory,
      options=self._options,
      # Named here so that metadata can be read before anything is restored.
      item_handlers={
        'ema': ocp.StandardCheckpointHandler(),
        'state': ocp.StandardCheckpointHandler(),
        'data': ocp.JsonCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc: Any) -> None:
    if self._manager is not None:
      self._manager.close()  # Waits for a save in flight.

  def steps(self) -> list[int]:
    """Steps saved whole, oldest first."""
    return sorted(self._manager.all_steps()) if self._manager else []

  def save(self, state: TrainState) -> None:
    """Starts writing `state`; returns once its arrays are copied."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        ema=ocp.args.StandardSave(state.ema),
        state=ocp.args.StandardSave(_without_ema(state)),
        data=ocp.args.JsonSave({'next_step': step}),
        meta=ocp.args.JsonSave({'format': FORMAT, 'jax': jax.__version__}),
      ),
      force=True,
    )

  def save_ema(self, ema: Any) -> None:
    """Writes averaged parameters alone, as step 0: of use to sampling only."""
    self._manager.save(
      0,
      args=ocp.args.Composite(
        ema=ocp.args.StandardSave(ema),
        meta=ocp.args.JsonSave({'format': FORMAT, 'jax': jax.__version__}),
      ),
    )

  def restore(self, like: TrainState) -> tuple[TrainState, int] | None:
    """The newest readable state and the loader's position; None if none.

    Args:
      like: `jax.ShapeDtypeStruct`s with shardings: where each array goes, on
        whatever mesh there is now.

    Raises:
      ValueError: if the stored arrays differ from `like` in name, shape or
        dtype, or steps exist and none can be read.
    """

    def read(step: int) -> tuple[TrainState, int]:
      self._check(step, 'state', _without_ema(like))
      self._check(step, 'ema', like.ema)
      items = self._manager.restore(
        step,
        args=ocp.args.Composite(
          ema=ocp.args.StandardRestore(like.ema),
          state=ocp.args.StandardRestore(_without_ema(like)),
          data=ocp.args.JsonRestore(),
          meta=ocp.args.JsonRestore(),
        ),
      )
      if items.meta['format'] != FORMAT:
        raise _Mismatch(
          f'Checkpoint {step} has format {items.meta["format"]}, this code '
          f'reads format {FORMAT}.'
        )
      s = items.state
      state = TrainState(s['step'], s['params'], s['opt_state'], items.ema)
      return state, items.data['next_step']

    return self._newest(read)

  def restore_ema(self, like: Any) -> tuple[Any, int] | None:
    """The newest readable moving average and its step; None if none.

    Args and errors as `restore`; only this part of the checkpoint is read.
    """

    def read(step: int) -> tuple[Any, int]:
      self._check(step, 'ema', like)
      args = ocp.args.Composite(ema=ocp.args.StandardRestore(like))
      return self._manager.restore(step, args=args).ema, step

    return self._newest(read)

  def _newest(self, read: Callable[[int], Any]) -> Any:
    """`read(step)` of the newest step that can be read."""
    if self._manager is not None:
      self._manager.wait_until_finished()
    steps, damaged = self.steps(), []
    for step in reversed(steps):
      found, error = _attempt(read, step)
      if hosts.agree(error is None):
        self._set_aside(damaged)
        return found
      log.warning(
        'Checkpoint %s cannot be read, trying the one before it. (%.200s)',
        self._directory / str(step),
        repr(error or 'not by another host').replace('\n', ' '),
      )
      damaged.append(step)
    if steps:
      raise ValueError(
        f'None of the checkpoints {steps} in {self._directory} can be read; '
        'nothing was changed.'
      )
    return None

  def _set_aside(self, steps: list[int]) -> None:
    """Renames damaged steps, so that training may save those steps again."""
    if self._read_only or not steps:
      return
    self._manager.close()

    def rename() -> None:
      for step in steps:
        path = self._directory / str(step)
        path.rename(path.with_name(f'{step}.unreadable.{time.time_ns()}'))

    hosts.once('set aside', rename)
    self._manager = self._open()

  def _check(self, step: int, item: str, like: Any) -> None:
    """Raises if names, shapes or dtypes differ; Orbax would convert dtypes."""
    metadata = self._manager.item_metadata(step)[item]
    if metadata is None:
      raise FileNotFoundError(f'no metadata of {item}')
    stored = {
      _name(path): (leaf.shape, leaf.dtype)
      for path, leaf in jax.tree_util.tree_flatten_with_path(metadata.tree)[0]
    }
    wanted = {
      _name(path): (leaf.shape, leaf.dtype)
      for path, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    for name in sorted(stored.keys() | wanted.keys()):
      if stored.get(name) != wanted.get(name):
        raise _Mismatch(
          f'Checkpoint {self._directory / str(step)}: {item}/{name} is '
          f'{stored.get(name, "missing")}, but this config and code need '
          f'{wanted.get(name, "nothing of that name")}.'
        )


class _Mismatch(ValueError):
  """The checkpoint is whole, and of another model."""


def _attempt(
  read: Callable[[int], Any], step: int
) -> tuple[Any, Exception | None]:
  """(read(step), None), or (None, why the step is damaged).

  Raises:
    ValueError: if it is whole, and of another model.
    OSError: if the place cannot be reached.
    JaxRuntimeError: if the devices cannot hold it.
  """
  try:
    return read(step), None
  except FileNotFoundError as e:
    return None, e
  except (_Mismatch, OSError, jax.errors.JaxRuntimeError):
    raise
  except Exception as e:  # Orbax raises bare Exception on damaged files.
    return None, e


def _without_ema(state: TrainState) -> dict[str, Any]:
  return {
    'step': state.step,
    'params': state.params,
    'opt_state': state.opt_state,
  }


def _name(path: tuple[Any, ...]) -> str:
  """a/b/0 for dict keys, attributes and indices alike."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
