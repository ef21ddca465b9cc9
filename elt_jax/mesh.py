"""The device mesh: axes `data`, `fsdp` and `tensor`, from the config."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

AXES = ('data', 'fsdp', 'tensor')


def build_mesh(
  shape: Mapping[str, int], devices: list[Any] | None = None
) -> Mesh:
  """A mesh over all devices (or `devices`) of the given axis sizes.

  One axis may be -1: it takes the devices that the others leave. Axes are
  Auto: the compiler propagates shardings from parameters, batch and carry.

  Raises:
    ValueError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [int(shape[axis]) for axis in AXES]
  asked = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, sizes))
  if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
    raise ValueError(
      f'The mesh ({asked}): sizes must be positive, and one may be -1.'
    )
  if -1 in sizes:
    rest = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1)
  if np.prod(sizes) != len(devices):
    raise ValueError(
      f'The mesh ({asked}) does not fit {len(devices)} devices: its '
      'axes must multiply to that number (-1 lets one axis take the rest).'
    )
  # Axes of any size, which `jax.make_mesh` allows on a v5e alone: a slice of
  # 4 x 4 chips would have none of 8.
  placed = mesh_utils.create_device_mesh(
    sizes, devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def data_mesh(devices: list[Any] | None = None) -> Mesh:
  """Every device on the `data` axis: for work that only splits its batch."""
  return build_mesh({'data': -1, 'fsdp': 1, 'tensor': 1}, devices)


def batch_shards(mesh: Mesh) -> int:
  """Over how many shards a batch is split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def check_config(config: Any, mesh: Mesh) -> None:
  """Raises ValueError unless a config can be trained on the mesh.

  Every step's examples must divide over it, and no device may only repeat what
  others do: a tokenizer has nothing that `tensor` splits.
  """
  tensor = mesh.shape['tensor']
  if config.model.family == 'tokenizer' and tensor > 1:
    raise ValueError(
      f'mesh.tensor = {tensor} splits heads and MLPs, and a tokenizer has none '
      'of them: set it to 1, and split examples by mesh.data or mesh.fsdp.'
    )
  examples = config.train.batch_size // config.train.accumulate_steps
  if examples % batch_shards(mesh):
    raise ValueError(
      f'train.batch_size / train.accumulate_steps = {examples} must be a '
      f'multiple of the devices that share it, mesh.data x mesh.fsdp = '
      f'{batch_shards(mesh)}.'
    )
