"""Files of published networks' weights: what they must hold, and its use."""

from collections.abc import Iterable
import pathlib

import numpy as np

from elt_jax import files, torch_files

Params = dict[str, np.ndarray]


def read(path: str | pathlib.Path, flag: str) -> Params:
  """The arrays of a .safetensors or .npz, or else PyTorch, file, by name.

  Args:
    path: of the file.
    flag: that it was given by, for messages.

  Raises:
    ValueError: if the file is missing or unreadable.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'--{flag}: there is no file {path}.')
  if path.suffix == '.safetensors':
    return files.read_safetensors(path)
  if path.suffix == '.npz':
    return files.read_npz(path)
  return torch_files.read_state_dict(path)


def folded(
  params: Params, norm: str, kernel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(kernel, bias), float32, of a convolution with its batch norm taken in.

  Args:
    params: with weight, bias, running_mean and running_var of the norm.
    norm: its name; TensorFlow's, of eps 1e-3.
    kernel: [..., out], of a convolution without a bias.
  """
  bn = {
    part: params[f'{norm}.{part}'].astype(np.float64)
    for part in ('weight', 'bias', 'running_mean', 'running_var')
  }
  scale = bn['weight'] / np.sqrt(bn['running_var'] + 1e-3)
  bias = bn['bias'] - bn['running_mean'] * scale
  return (kernel * scale).astype(np.float32), bias.astype(np.float32)


def fitting(
  arrays: Params,
  shapes: Iterable[tuple[str, tuple[int, ...]]],
  path: str | pathlib.Path,
  network: str,
) -> Params:
  """Those of `shapes`, float32; others are left out.

  Raises:
    ValueError: if one is missing, of another shape, or no finite numbers; with
      `path`, and what `network` it is not.
  """
  found = {}
  for name, shape in shapes:
    if name not in arrays or arrays[name].shape != shape:
      got = arrays[name].shape if name in arrays else 'missing'
      raise ValueError(
        f'{path} is not {network}: {name} is {got}, expected {shape}.'
      )
    if arrays[name].dtype.kind != 'f' or not np.isfinite(arrays[name]).all():
      raise ValueError(
        f'{path} is damaged: {name} is {arrays[name].dtype}; expected finite '
        'numbers.'
      )
    found[name] = np.asarray(arrays[name], np.float32)
  return found
