"""Pictures: grids of samples, the loss, the elastic curve, telemetry."""

from collections.abc import Mapping, Sequence
import io
from typing import IO, Any

from etils import epath
import numpy as np
from PIL import Image

from elt_jax import files


def to_uint8(images: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8 0..255, rounded; values outside are clipped."""
  return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int, pad: int = 2) -> np.ndarray:
  """uint8 [n, (f,) h, w, c] -> one uint8 picture [H, W, 3], row by row.

  The frames of a clip stand side by side, in a cell each. Cells are separated
  by `pad` grey pixels; cells without an image stay grey.
  """
  if images.ndim == 5:
    columns *= images.shape[1]
    images = np.concatenate(images)
  n, h, w, c = images.shape
  if c not in (1, 3):
    raise ValueError(f'Only images of 1 or 3 channels can be shown, got {c}.')
  rows = -(-n // columns)
  canvas = np.full(
    (rows * (h + pad) + pad, columns * (w + pad) + pad, 3), 128, np.uint8
  )
  for i, image in enumerate(images):
    y, x = divmod(i, columns)
    y, x = pad + y * (h + pad), pad + x * (w + pad)
    canvas[y : y + h, x : x + w] = image
  return canvas


def versions(samples: np.ndarray) -> np.ndarray:
  """uint8 [versions, n, (f,) h, w, c] -> one uint8 picture [H, W, 3].

  Of images, a row per version. Of clips, which are film strips, the versions of
  each stand under each other, and those of the next are a wider gap below.
  """
  if samples.ndim == 5:
    return grid(np.concatenate(samples), samples.shape[1])
  return np.concatenate([grid(clip, 1) for clip in samples.swapaxes(0, 1)])


def loops_name(label: int | str) -> str:
  """How rows of loop counts and schedules are headed: 'L = 4', 'mid-peak'."""
  return f'L = {label}' if isinstance(label, int) else label


def save_png(path: epath.PathLike, picture: np.ndarray, scale: int = 1) -> None:
  """Writes uint8 [h, w, 3], each pixel `scale` pixels wide, whole or not."""
  picture = picture.repeat(scale, 0).repeat(scale, 1)
  if (picture == picture[..., :1]).all():
    picture = picture[..., 0]  # A third of the size.
  with files.replacing(path) as temporary:
    Image.fromarray(picture).save(temporary, format='PNG')


def save_figure(
  figure: Any, path: epath.PathLike | IO[bytes], dpi: int, photos: bool = False
) -> None:
  """Writes a matplotlib figure as a PNG of 128 colours.

  It looks the same and has a third of the size, unless there are `photos` in
  it: with those all colours are kept.
  """
  if photos:
    return figure.savefig(path, format='png', dpi=dpi)
  rendered = io.BytesIO()
  figure.savefig(rendered, format='png', dpi=dpi)
  with Image.open(rendered) as picture:
    palette = Image.Quantize.MAXCOVERAGE  # No colour is far from its own.
    colours = picture.convert('RGB').quantize(128, palette, dither=0)
  colours.save(path, format='PNG', optimize=True)


def elastic_figure(
  report: dict[str, Any], pictures: np.ndarray, path: epath.Path
) -> None:
  """Quality against loops and against GFLOPs, over a strip of samples.

  Loop counts are joined by a line; schedules stand alone, by their mean.

  Args:
    report: of `evals.elastic.evaluate`.
    pictures: uint8 [rows, n, (f,) h, w, c], the same seeds in every row; clips
      are drawn as film strips.
    path: where the PNG goes.
  """
  from matplotlib.figure import Figure  # Slow to import; no global state.

  rows, recipe = report['rows'], report['recipe']
  quality = recipe['quality']
  labels = [row['loops'] for row in rows]
  constant = np.array([isinstance(label, int) for label in labels])
  # Inches of a row of pictures: two clips are stacked in it.
  tall = len(rows) * (1.1 if pictures.ndim == 6 else 0.75)
  figure = Figure(figsize=(10, 3.6 + tall), layout='constrained')
  top, bottom = figure.subfigures(2, 1, height_ratios=[3.4, tall + 0.2])
  axes = top.subplots(1, 2)
  of_rows = lambda name: np.array([row[name] for row in rows])
  loops = of_rows('mean_loops')
  against = (
    (loops, 'loops L'),
    (
      of_rows('gflops_per_sample'),
      'GFLOPs per sample',
    ),
  )
  for axis, (x, label) in zip(axes, against):
    y = of_rows(quality)
    axis.plot(x[constant], y[constant], 'o-', color='tab:blue')
    axis.plot(x[~constant], y[~constant], 'D', mfc='none', color='tab:blue')
    spread = of_rows(f'{quality}_spread')
    axis.errorbar(x, y, spread, fmt='none', capsize=3, color='tab:blue')
    axis.axhline(
      recipe['floor'],
      color='tab:blue',
      ls=':',
      lw=1,
      label='floor: real data',
    )
    if f'{quality}_of_reconstructions' in recipe:
      axis.axhline(
        recipe[f'{quality}_of_reconstructions'],
        color='tab:blue',
        ls='--',
        lw=1,
        label='real data, encoded and decoded',
      )
    axis.set_xlabel(label)
    axis.set_ylabel(f'{quality} (lower is better)', color='tab:blue')
    axis.set_ylim(bottom=0)
    right = axis.twinx()
    y = of_rows('class_accuracy')
    right.plot(x[constant], y[constant], 's--', color='tab:orange')
    right.plot(x[~constant], y[~constant], 's', mfc='none', color='tab:orange')
    right.set_ylim(0, 1.02)
    right.set_ylabel('class accuracy', color='tab:orange')
    if 'motion' in rows[0]:
      y = of_rows('motion')
      right.plot(x[constant], y[constant], '^:', color='tab:green')
      right.plot(x[~constant], y[~constant], '^', mfc='none', color='tab:green')
      right.axhline(recipe['motion_of_data'], color='tab:green', ls=':', lw=1)
      right.set_ylabel('class accuracy\nmotion (green; dotted: real data)')
  axes[0].set_xticks(loops[constant])
  trained = recipe['max_loops_in_training']
  if max(loops) > trained:
    axes[0].axvspan(
      trained, max(loops), color='0.92', zorder=0, label='beyond L_max'
    )
  axes[0].legend(loc='best', fontsize=8)
  top.suptitle(
    f'One checkpoint, step {recipe["checkpoint_step"]}; '
    f'{recipe["num_samples"]} samples, {recipe["num_steps"]} steps, '
    f'{recipe["guidance_mode"]} {recipe["guidance"]:g}, L_max = {trained}',
    fontsize=10,
  )
  _strips(bottom, labels, pictures)
  save_figure(figure, path, dpi=110, photos=pictures.shape[-1] == 3)


def _strips(figure: Any, labels: list[int | str], pictures: np.ndarray) -> None:
  """A labelled row of pictures per loop count; clips one above the other."""
  strips = figure.subplots(len(labels), 1, squeeze=False)[:, 0]
  for strip, label, images in zip(strips, labels, pictures):
    columns = 1 if images.ndim == 5 else len(images)
    strip.imshow(grid(images, columns, pad=1), interpolation='nearest')
    strip.set_xticks([])
    strip.set_yticks([])
    name = loops_name(label).replace(':', '\n')
    strip.set_ylabel(name, rotation=0, ha='right', va='center', fontsize=9)


def telemetry_figure(report: dict[str, Any], path: epath.Path) -> None:
  """What each loop does: four maps of sampling, over four curves of training.

  Args:
    report: of `evals.elastic.evaluate`, with telemetry of training.
    path: where the PNG goes.
  """
  from matplotlib import colormaps, colors
  from matplotlib.figure import Figure

  trained = report['recipe']['max_loops_in_training']
  telemetry = report['telemetry']
  figure = Figure(figsize=(15, 6), layout='constrained')
  axes = figure.subplots(2, 4)
  maps = {
    'update': 'norm of the update',
    'relative_update': 'update over the state before',
    'norm': 'norm of the state',
    'distance': f'output: distance from L = {trained}',
  }
  for axis, (name, title) in zip(axes[0], maps.items(), strict=True):
    values = np.array(telemetry['sampling'][name]).T  # [loops, steps]
    # The first loop changes the embedding out of all proportion; those of a
    # model that has hardly been trained change nothing.
    logarithmic = 'update' in name and values.max() > 0
    norm = colors.LogNorm() if logarithmic else None
    image = axis.imshow(values, origin='lower', aspect='auto', norm=norm)
    figure.colorbar(image, ax=axis)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('sampling step')
    axis.set_ylabel('loop')
    axis.set_yticks(range(len(values)), range(1, len(values) + 1))
    axis.axhline(trained - 0.5, color='white', lw=1, ls='--')
  curves = {
    'loss': 'loss of the exit',
    'agreement': f'agreement with the exit of L = {trained}',
    'relative_update': 'update over the state before',
    'state_rms': 'state, root mean square',
  }
  looks = telemetry['training']
  for axis, (name, title) in zip(axes[1], curves.items(), strict=True):
    for n, look in enumerate(looks):
      loops = range(1, len(look[name]) + 1)
      color = colormaps['viridis']((n + 1) / len(looks))
      label = f'training step {look["step"]}'
      axis.plot(loops, look[name], 'o-', ms=3, color=color, label=label)
    axis.axvline(trained + 0.5, color='0.5', lw=1, ls='--')
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('loop')
    if name != 'agreement':
      axis.set_yscale('log')
  if 0 < len(looks) <= 6:
    axes[1, 0].legend(fontsize=7)
  figure.suptitle(
    f'Above: sampling with {trained} loops a step. Below: training. Past the '
    'dashed lines, loops beyond training',
    fontsize=10,
  )
  save_figure(figure, path, dpi=100)


def loss_figure(
  records: Sequence[Mapping[str, float]],
  num_steps: int,
  path: epath.PathLike | IO[bytes],
) -> None:
  """The loss and its terms over training, so far.

  Args:
    records: of `writers.read`, in order.
    num_steps: where the training ends.
    path: where the PNG goes, or an open file.
  """
  from matplotlib.figure import Figure

  names = {
    'train/gt_final': ('teacher on the data', 'tab:blue'),
    'train/gt_exit': ('student on the data', 'tab:orange'),
    'train/distill': ('student on the teacher', 'tab:green'),
    'train/loss': ('loss', 'black'),
  }
  figure = Figure(figsize=(8, 3.5), layout='constrained')
  axis = figure.subplots()
  for name, (label, color) in names.items():
    have = [record for record in records if name in record]
    if have:
      steps = [record['step'] for record in have]
      values = [record[name] for record in have]
      axis.plot(steps, values, label=label, lw=1.5, color=color)
  axis.set_xlim(0, num_steps)
  axis.set_yscale('log')
  axis.set_xlabel('training step')
  if axis.lines:
    axis.legend(loc='upper right', fontsize=8)
  save_figure(figure, path, dpi=90)
