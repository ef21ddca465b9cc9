"""What notebooks call, without a notebook: the panel's studio, the plots."""

import io
import json
import sys
import types

import numpy as np
from PIL import Image
import pytest

from elt_jax import notebook, panel, rows, train, viz, writers
from elt_jax.video import SUFFIXES
from tests.conftest import tiny_config
from tests.test_film import drawing


@pytest.fixture(scope='module')
def studio(tmp_path_factory):
  draw, params = drawing('diffusion', batch_size=3)
  directory = tmp_path_factory.mktemp('saved')
  return panel.Studio(draw, params, 3, str(directory)), draw, params


def test_settings_are_those_of_the_config_but_for_what_is_given(studio):
  _, draw, _ = studio
  got = panel.settings_of(draw, loops=2, seed=None, label=3)
  assert got == panel.Settings(2, 'cfg', 1.5, 4, 3, 0)


@pytest.mark.parametrize(
  'changes',
  [
    {'loops': 1},
    {'guidance': 3.0},
    {'guidance_mode': 'exit'},
    {'steps': 2},
    {'label': 2},
    {'seed': 9},
  ],
)
def test_each_setting_does_what_it_says(studio, changes):
  studio, draw, params = studio
  settings = panel.settings_of(draw, **changes)
  row = studio.draw(settings)
  steps = changes.get('steps', 4)
  of_plan = ('guidance', 'guidance_mode')
  want = draw.with_steps(steps)(
    params,
    [settings.label] * 3,
    settings.loops,
    settings.seed,
    **{name: getattr(settings, name) for name in of_plan},
  )
  np.testing.assert_array_equal(row.samples, viz.to_uint8(want))
  usual = studio.draw(panel.settings_of(draw))
  assert (row.samples != usual.samples).any()


def test_loops_cost_what_the_caption_says(studio):
  studio, draw, _ = studio
  few, more = (panel.settings_of(draw, loops=n) for n in (1, 5))
  one, five = studio.draw(few), studio.draw(more)
  assert one.gflops < five.gflops < 5 * one.gflops
  lines = studio.caption(more, five).splitlines()
  assert lines[0] == 'L = 5 (trained to 3)'
  assert lines[1] == f'{five.gflops:.3g} GFLOPs per sample'
  milliseconds = float(lines[2].split()[0])
  assert milliseconds == pytest.approx(1e3 * five.seconds / 3, rel=0.01)
  assert studio.caption(few, one).startswith('L = 1\n')


def test_seconds_leave_out_compiling():
  draw, params = drawing('diffusion', batch_size=3)
  warm, timed = [], []
  draw.warm_up = lambda *args, **kwargs: warm.append(args[1].label)
  sample = draw.sample
  draw.sample = lambda *a, **k: timed.append(len(warm)) or sample(*a, **k)
  panel.Studio(draw, params, 3, '').draw(panel.settings_of(draw, loops=2))
  assert warm == [2] and timed == [1]


def test_a_picture_is_saved_under_its_settings(studio):
  studio, draw, _ = studio
  settings = panel.settings_of(draw, loops=2, label=1)
  row = studio.draw(settings)
  path = studio.save(settings, row, '.png')
  assert path.name == 'class1_seed0_L2_K4_cfg1.5.png'
  with Image.open(path) as picture:
    pixels = np.asarray(picture.convert('RGB'))
  assert pixels.shape == (12 * 22, 12 * 22, 3)  # 2 x 2 cells, one is empty.
  np.testing.assert_array_equal(
    pixels[24:120:12, 24:120:12, :1], row.samples[0]
  )
  assert studio.suffixes == ('.png',)


def test_clips_play_and_lie_in_strips():
  samples = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 8, 8, 1))
  samples = samples.astype(np.uint8)
  config = tiny_config()
  assert rows.suffixes(config) == ('.png',)
  config.data.num_frames = 3
  assert rows.suffixes(config) == ('.png', *SUFFIXES)
  strip = rows.lay_out(samples, ['L = 1'], ['a', 'b'], 1, wrap=True)
  assert strip.shape == (2 * 12, 3 * 10 + 2, 3)
  images = samples[:, :, 0].repeat(2, 1)
  wide = rows.lay_out(images, ['L = 1'], list('abcd'), 1)
  square = rows.lay_out(images, ['L = 1'], list('abcd'), 1, wrap=True)
  assert wide.shape == (12, 42, 3) and square.shape == (22, 22, 3)
  frames = rows.lay_out(samples, ['L = 1'], ['a', 'b'], 1, plays=True)
  assert frames.ndim == 4 and len(frames) == 3
  with Image.open(io.BytesIO(notebook.encode(frames))) as gif:
    assert gif.format == 'GIF' and gif.n_frames == 3
  with Image.open(io.BytesIO(notebook.encode(strip))) as png:
    assert png.format == 'PNG' and png.size == strip.shape[1::-1]


def test_clips_of_the_panel_play_in_a_square():
  config = tiny_config()
  config.data.num_frames = 2
  draw = types.SimpleNamespace(config=config)
  studio = panel.Studio(draw, None, 3, '')
  clips = np.arange(3, dtype=np.uint8)[:, None, None, None, None] * 90
  clips = clips + np.zeros((3, 2, 8, 8, 1), np.uint8)
  row = rows.Row(clips, [], 1.0, 1.0)
  settings = panel.settings_of(draw, loops=2)
  frames = studio.picture(settings, row, plays=True)
  assert len(frames) == 2
  middle = lambda value: np.mean(np.nonzero(frames[0] == value), 1)[:2]
  (y, x), (below, left) = middle(90), middle(180)  # The second, the third.
  np.testing.assert_allclose((below - y, x - left), 100, atol=1)
  strip = studio.picture(settings, row, plays=False)
  assert strip.shape == (12 * 3 * 12, 12 * 22, 3)


@pytest.fixture
def page(monkeypatch):
  """What a notebook would show, with IPython's functions in its place."""
  shown = []

  class Handle:
    def update(self, value):
      shown.append(value)

  def display(value, display_id=False):
    shown.append(value)
    return Handle() if display_id else None

  module = types.ModuleType('IPython.display')
  module.display, module.Image, module.Markdown = display, bytes, str
  package = types.ModuleType('IPython')
  package.display, package.version_info = module, (9, 0)
  monkeypatch.setitem(sys.modules, 'IPython', package)
  monkeypatch.setitem(sys.modules, 'IPython.display', module)
  return shown


def test_without_widgets_the_values_are_drawn_once(
  studio, page, monkeypatch, capsys
):
  studio, draw, _ = studio
  monkeypatch.setitem(sys.modules, 'ipywidgets', None)
  settings = panel.settings_of(draw, seed=5)
  assert panel.show(studio, settings) is None
  (picture,) = page
  with Image.open(io.BytesIO(picture)) as png:
    assert png.format == 'PNG'
  out = capsys.readouterr().out
  assert 'Without ipywidgets' in out and 'GFLOPs per sample' in out
  assert out.rstrip().endswith('class0_seed5_L3_K4_cfg1.5.png')


def test_training_shows_itself_and_goes_on(page, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(notebook, '_SECONDS_BETWEEN_PLOTS', 0.0)
  config = notebook.shrink(tiny_config(), 12)
  config.train.log_every_steps, config.checkpoint.every_steps = 3, 3
  workdir = str(tmp_path / 'run')
  real, stopped = train.train, []
  plotted, figure = [], viz.loss_figure

  def spy(records, num_steps, path):
    plotted.append([r['step'] for r in records])
    figure(records, num_steps, path)

  monkeypatch.setattr(viz, 'loss_figure', spy)

  def stops(config, workdir, on_log):
    """As if interrupted after step 6."""

    def until(step, metrics):
      on_log(step, metrics)
      if step == 6:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      real(config, workdir, until)
    stopped.append(writers.read(tmp_path / 'run' / 'logs')[-1]['step'])
    return False

  monkeypatch.setattr(train, 'train', stops)
  notebook.train(config, workdir)
  assert stopped == [6] and 'go on' in capsys.readouterr().out
  assert any('Step 3 of 12' in words for words in page if words is str(words))
  monkeypatch.setattr(train, 'train', real)
  notebook.train(config, workdir)
  steps = [r['step'] for r in writers.read(tmp_path / 'run' / 'logs')]
  assert steps == [3, 6, 9, 12]
  # From the checkpoint of step 3 on: step 6 was logged twice.
  assert plotted[-1] == steps and [3, 6] in plotted
  words = [value for value in page if isinstance(value, str)]
  assert words[-1].startswith('Step 12 of 12, loss') and 'left' not in words[-1]
  plots = [value for value in page if isinstance(value, bytes)]
  with Image.open(io.BytesIO(plots[-1])) as plot:
    assert plot.size == (720, 315)
  count = len(page)
  notebook.train(config, workdir)  # Finished: the plot alone.
  assert len(page) == count + 4
  assert capsys.readouterr().out == ''


def test_progress_in_words():
  record = {'step': 50, 'train/loss': 0.23456, 'train/steps_per_second': 5.0}
  assert notebook.progress([record], 600) == (
    'Step 50 of 600, loss 0.235, 5.0 steps a second, 0:01:50 left.'
  )
  assert notebook.progress([], 600) == 'Nothing was logged.'


def test_a_shrunk_config_is_one_of_few_steps():
  config = tiny_config()
  config.optim.warmup_steps, config.train.sample_every_steps = 100, 5
  small = notebook.shrink(config, 40)
  t = small.train
  assert (t.num_steps, t.sample_every_steps, t.log_every_steps) == (40, 0, 2)
  assert small.optim.warmup_steps == 8 and small.checkpoint.every_steps == 40
  assert config.optim.warmup_steps == 100 and config.train.num_steps == 20


def test_logs_are_read_up_to_where_a_run_was_killed(tmp_path):
  lines = [json.dumps({'step': n, 'a': 0.5}) for n in (1, 2)]
  text = '\n'.join([*lines, '[1]', '{"a": 1}', '{"step": 3, "a"'])
  (tmp_path / 'metrics.jsonl').write_text(text)
  assert writers.read(tmp_path) == [json.loads(line) for line in lines]
  assert writers.read(tmp_path / 'nowhere') == []


@pytest.mark.parametrize(
  'gpu,colab,words',
  [
    (None, False, 'CPU of'),
    ('/usr/bin/nvidia-smi', False, 'install jax[cuda13]'),
    (None, True, 'Change runtime type'),
  ],
)
def test_the_runtime_says_what_could_be_better(gpu, colab, words, monkeypatch):
  monkeypatch.setattr(notebook.shutil, 'which', lambda name: gpu)
  monkeypatch.delenv('COLAB_RELEASE_TAG', raising=False)
  if colab:
    monkeypatch.setenv('COLAB_RELEASE_TAG', 'release-colab')
  text = notebook.runtime()
  assert text.startswith('CPU of') and words in text
  assert ('nvidia' in text.lower()) == bool(gpu)


def test_other_devices_are_named(monkeypatch):
  chip = types.SimpleNamespace(device_kind='TPU v5 lite', platform='tpu')
  monkeypatch.setattr(notebook.jax, 'devices', lambda: [chip] * 4)
  assert notebook.runtime().startswith('TPU: 4 x TPU v5 lite; jax ')


def test_the_loss_is_drawn_with_the_terms_there_are():
  colours = {'final': (31, 119, 180), 'exit': (255, 127, 14)}

  def drawn(names):
    values = {name: i + 1.0 for i, name in enumerate(names)}
    records = [{'step': step} | values for step in (5, 10)]
    picture = io.BytesIO()
    viz.loss_figure(records, 20, picture)
    with Image.open(picture) as png:
      pixels = np.asarray(png.convert('RGB')).astype(int)
    near = lambda colour: np.abs(pixels - colour).max(-1) < 30
    return [name for name, colour in colours.items() if near(colour).any()]

  assert drawn([]) == []
  assert drawn(['train/loss', 'train/gt_final']) == ['final']
  assert drawn(['train/gt_exit', 'train/gt_final']) == ['final', 'exit']
