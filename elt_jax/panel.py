"""A panel that draws: sliders beside the samples they make.

Where ipywidgets is not installed the same settings are plain values, and what
they make is shown once.
"""

import dataclasses
import html
import math
from typing import Any

from etils import epath
import numpy as np

from elt_jax import notebook, rows, video
from elt_jax.rows import Row
from elt_jax.samplers.draw import Draw
from elt_jax.samplers.loops import parse
from elt_jax.validation import CHOICES

# Pixels of a picture's side, at least.
_SIDE = 96


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the panel sets.

  Attributes:
    loops: L of every step.
    guidance_mode: as config.sample.guidance_mode.
    guidance: scale s; 1 is off.
    steps: sampling steps K.
    label: class.
    seed: of the noise.
  """

  loops: int
  guidance_mode: str
  guidance: float
  steps: int
  label: int
  seed: int


def settings_of(draw: Draw, **changes: Any) -> Settings:
  """Those of the model's config, L_max loops of class 0, but for `changes`.

  A change to None is none.
  """
  s = draw.config.sample
  usual = Settings(
    loops=draw.config.model.max_loops,
    guidance_mode=s.guidance_mode,
    guidance=s.guidance,
    steps=s.num_steps,
    label=0,
    seed=0,
  )
  given = {key: value for key, value in changes.items() if value is not None}
  return dataclasses.replace(usual, **given)


class Studio:
  """Draws from one model at any settings, and saves what was drawn.

  A number of steps has a program of its own, which is compiled once.
  """

  def __init__(self, draw: Draw, params: Any, num: int, directory: str):
    """Draws nothing yet.

    Args:
      draw: of a generator.
      params: its averaged parameters.
      num: samples of a picture.
      directory: where pictures are saved, also gs://...
    """
    self.config = draw.config
    self._draws = {draw.config.sample.num_steps: draw}
    self._params = params
    self._num = num
    self._directory = epath.Path(directory)

  def draw(self, settings: Settings) -> Row:
    """`num` samples, whose seconds leave out compiling.

    Raises:
      ValueError: on settings that do not fit the model.
    """
    s = settings
    if s.steps not in self._draws:
      some = next(iter(self._draws.values()))
      self._draws[s.steps] = some.with_steps(s.steps)
    draw = self._draws[s.steps]
    changes = {'guidance_mode': s.guidance_mode, 'guidance': s.guidance}
    draw.warm_up(self._params, parse(s.loops, draw.config), **changes)
    labels = [s.label] * self._num
    return rows.draw_row(draw, self._params, labels, s.loops, s.seed, **changes)

  def caption(self, settings: Settings, row: Row) -> str:
    """What a sample cost, in lines."""
    trained = self.config.model.max_loops
    beyond = '' if settings.loops <= trained else f' (trained to {trained})'
    return '\n'.join(
      [
        f'L = {settings.loops}{beyond}',
        f'{row.gflops:.3g} GFLOPs per sample',
        f'{1e3 * row.seconds / len(row.samples):.3g} ms per sample',
      ]
    )

  def picture(self, settings: Settings, row: Row, plays: bool) -> np.ndarray:
    """uint8 [(f,) H, W, 3]; `plays` is of clips, in place of film strips."""
    scale = -(-_SIDE // self.config.data.image_size)
    if not plays:
      return rows.lay_out(row.samples[None], [], [], scale, wrap=True)
    samples = _square(row.samples)
    names, columns = ([''] * n for n in samples.shape[:2])
    columns[0] = f'L = {settings.loops}'
    return rows.lay_out(samples, names, columns, scale, plays=True)

  def save(self, settings: Settings, row: Row, suffix: str) -> epath.Path:
    """Writes the samples; the name says the settings. `suffix` as '.png'."""
    s = settings
    name = (
      f'class{s.label}_seed{s.seed}_L{s.loops}_K{s.steps}_'
      f'{s.guidance_mode}{s.guidance:g}{suffix}'
    )
    path = self._directory / name
    video.save(path, self.picture(s, row, suffix in video.SUFFIXES))
    return path

  @property
  def suffixes(self) -> tuple[str, ...]:
    """Of the files that `save` writes."""
    return rows.suffixes(self.config)


def _square(clips: np.ndarray) -> np.ndarray:
  """uint8 [n, ...] -> [rows, columns, ...] as a square, ended in grey."""
  side = math.ceil(math.sqrt(len(clips)))
  empty = np.full((-len(clips) % side, *clips.shape[1:]), 128, np.uint8)
  return np.concatenate([clips, empty]).reshape(-1, side, *clips.shape[1:])


def show(studio: Studio, settings: Settings) -> 'Panel | None':
  """The panel, or, without ipywidgets, what it would show at first."""
  try:
    import ipywidgets
  except ImportError:
    print('Without ipywidgets: set the values, and run the cell again.')
    row = studio.draw(settings)
    print(studio.caption(settings, row))
    plays = len(studio.suffixes) > 1
    notebook.show(studio.picture(settings, row, plays))
    for suffix in studio.suffixes:
      print(studio.save(settings, row, suffix))
    return None
  from IPython import display

  panel = Panel(ipywidgets, studio, settings)
  display.display(panel.widget)
  return panel


class Panel:
  """Widgets of the settings beside the picture that they make.

  Attributes:
    controls: widgets by the names of `Settings`.
    buttons: one for each suffix of a file.
    picture: the image widget.
    caption: what a sample cost, or what was wrong.
    message: where the last file was saved.
    widget: all of them.
  """

  def __init__(self, widgets: Any, studio: Studio, settings: Settings):
    """Draws once. `widgets` is ipywidgets."""
    self._studio = studio
    self.controls = _controls(widgets, studio.config, settings)
    plays = len(studio.suffixes) > 1
    self.picture = widgets.Image(
      format='gif' if plays else 'png',
      # As large as it is, or as there is room for: never out of shape.
      layout={'object_fit': 'contain', 'max_width': '100%'},
    )
    self.caption, self.message = widgets.HTML(), widgets.HTML()
    self.buttons = {
      suffix: widgets.Button(
        description=f'Save {suffix}', disabled=True, layout={'width': '106px'}
      )
      for suffix in studio.suffixes
    }
    for control in self.controls.values():
      control.observe(lambda change: self._refresh(), names='value')
    for suffix, button in self.buttons.items():
      button.on_click(lambda _, suffix=suffix: self._save(suffix))
    buttons = widgets.HBox([*self.buttons.values()])
    left = [*self.controls.values(), buttons, self.caption]
    beside = widgets.HBox(
      [
        widgets.VBox(left, layout={'flex': '0 0 350px'}),
        widgets.VBox([self.picture], layout={'align_items': 'flex-start'}),
      ],
      layout={'align_items': 'flex-start'},
    )
    self.widget = widgets.VBox([beside, self.message])
    self._refresh()

  def _refresh(self) -> None:
    """Draws what the controls say."""
    values = {name: widget.value for name, widget in self.controls.items()}
    settings = Settings(**values)
    self.caption.value, self.message.value = 'Drawing ...', ''
    try:
      row = self._studio.draw(settings)
    except ValueError as e:
      self._say(f'These do not go together: {e}')
      self._enable(False)
      return
    self._shown = settings, row
    plays = self.picture.format == 'gif'
    self.picture.value = notebook.encode(
      self._studio.picture(settings, row, plays)
    )
    self._say(self._studio.caption(settings, row))
    self._enable(True)

  def _say(self, text: str) -> None:
    self.caption.value = html.escape(text).replace('\n', '<br>')

  def _enable(self, on: bool) -> None:
    for button in self.buttons.values():
      button.disabled = not on

  def _save(self, suffix: str) -> None:
    path = self._studio.save(*self._shown, suffix)
    self.message.value = f'Saved {html.escape(str(path))}'


def _controls(widgets: Any, config: Any, s: Settings) -> dict[str, Any]:
  """A widget for each of the settings; what it draws waits for its release."""
  common = {
    'continuous_update': False,
    'style': {'description_width': '110px'},
    'layout': {'width': '330px'},
  }
  slider = lambda value, low, high, name: widgets.IntSlider(
    value, low, high, description=name, **common
  )
  most = config.data.num_classes - 1
  return {
    'loops': slider(s.loops, 1, 2 * config.model.max_loops, 'loops L'),
    'guidance_mode': widgets.Dropdown(
      value=s.guidance_mode,
      options=CHOICES['sample.guidance_mode'],
      description='guidance',
      style=common['style'],
      layout=common['layout'],
    ),
    'guidance': widgets.FloatSlider(
      s.guidance, min=1, max=10, step=0.1, description='scale s', **common
    ),
    'steps': slider(s.steps, 1, max(50, 2 * s.steps), 'steps K'),
    'label': widgets.BoundedIntText(
      s.label, 0, most, description=f'class 0..{most}', **common
    ),
    'seed': widgets.BoundedIntText(
      s.seed, 0, 2**31 - 1, description='seed', **common
    ),
  }
