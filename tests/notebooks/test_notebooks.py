"""The notebooks of launch/colab/, executed: `make notebooks`.

Each runs in a kernel of its own, with its settings shrunk to what a CPU does
in a minute, and then a cell more that looks at what was made.
"""

import pathlib
import subprocess

import nbclient
import nbformat
import pytest

from elt_jax import checkpoint
from elt_jax import config as config_lib
from tests.conftest import tiny_config
from tests.helpers import Stack, noisy

COLAB = pathlib.Path(__file__).parents[2] / 'launch' / 'colab'
NAMES = ('quickstart', 'sample', 'maskgit')
QUICK = {
  'STEPS': 20,
  'SAMPLING_STEPS': 3,
  'LOOPS': [1, 4],
  'NUM_SAMPLES': 16,
}
TINY = {'TRAINING_STEPS': 20, 'STEPS': 3, 'NUM': 4}
# A slider changes the picture and its cost, and a button saves it.
SLIDER = """
import pathlib
import subprocess

before, cost = shown.picture.value, shown.caption.value
assert before and 'L = 4' in cost and 'GFLOPs per sample' in cost
shown.controls['loops'].value = 1
assert shown.picture.value != before
assert 'L = 1' in shown.caption.value and shown.caption.value != cost
shown.controls['guidance'].value = 5.0
shown.controls['steps'].value = 2
shown.buttons['.png'].click()
(saved,) = pathlib.Path(RUNS).glob('notebook_samples/*/*')
assert saved.name == 'class3_seed0_L1_K2_cfg5.png', saved
assert str(saved) in shown.message.value
before = shown.picture.value
shown.controls['label'].value = 7
shown.controls['seed'].value = 8
assert shown.picture.value != before
"""
# Values that do not fit are explained, and what fits is drawn again.
REFUSED = """
shown.controls['guidance_mode'].value = 'exit'
studio.config.sample.weak_loops = 1
for draw in studio._draws.values():
  with draw.config.unlocked():
    draw.config.sample.weak_loops = 3
shown.controls['loops'].value = 2
assert 'do not go together' in shown.caption.value, shown.caption.value
assert 'weak_loops' in shown.caption.value
assert shown.buttons['.png'].disabled
shown.controls['loops'].value = 4
assert 'GFLOPs' in shown.caption.value and not shown.buttons['.png'].disabled
"""


def read(name):
  return nbformat.read(COLAB / f'{name}.ipynb', as_version=4)


def execute(name, settings, check='', before=''):
  """The executed notebook, with `settings` in place of those it has."""
  notebook = read(name)
  parameters = tagged(notebook, 'parameters')
  names = {line.split(' = ')[0] for line in parameters.source.splitlines()}
  assert settings.keys() <= names, (settings.keys(), names)
  lines = [f'{key} = {value!r}' for key, value in settings.items()]
  cell = nbformat.v4.new_code_cell('\n'.join([*lines, before]))
  notebook.cells.insert(notebook.cells.index(parameters) + 1, cell)
  notebook.cells.append(nbformat.v4.new_code_cell(check))
  return run(notebook, COLAB)


def run(notebook, directory):
  where = {'metadata': {'path': str(directory)}}
  return nbclient.NotebookClient(
    notebook, timeout=540, kernel_name='python3', resources=where
  ).execute()


def tagged(notebook, tag):
  (found,) = [c for c in notebook.cells if tag in c.metadata.get('tags', ())]
  return found


def pictures(notebook):
  """How many cells show one."""
  return sum(
    any('image/png' in output.get('data', ()) for output in cell.outputs)
    for cell in notebook.cells
    if cell.cell_type == 'code'
  )


def printed(notebook, stream='stdout'):
  return ''.join(
    output.text
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if output.output_type == 'stream' and output.name == stream
  )


@pytest.mark.parametrize('name', NAMES)
def test_nothing_is_stored_and_cells_are_short(name):
  path = COLAB / f'{name}.ipynb'
  assert path.stat().st_size < 100_000
  notebook = read(name)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None
      statements = [line for line in cell.source.splitlines() if line]
      settings = 'parameters' in cell.metadata.get('tags', ())
      assert settings or len(statements) <= 9, cell.source
      assert not any(line.startswith(('def ', 'class ')) for line in statements)
  assert f'blob/main/launch/colab/{name}.ipynb' in notebook.cells[0].source


def test_the_install_cell_is_one_and_clones_where_there_is_no_checkout(
  tmp_path,
):
  """As on Colab, from a repository whose installer only says where it is."""
  cells = {tagged(read(name), 'install').source for name in NAMES}
  assert len(cells) == 1
  script = tmp_path / 'repository' / 'launch' / 'colab' / 'install.py'
  script.parent.mkdir(parents=True)
  script.write_text('import os; print("installs in", os.getcwd())')
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b.c')
  for command in (
    ('init', '-q'),
    ('add', '-A'),
    ('commit', '-q', '-m', 'All of it'),
  ):
    subprocess.run(
      [*git, *command], cwd=tmp_path / 'repository', check=True, timeout=60
    )
  here = tmp_path / 'content'
  here.mkdir()
  notebook = nbformat.v4.new_notebook()
  sources = [
    f'REPOSITORY = "file://{tmp_path}/repository"',
    *cells,
    *cells,  # Again: the kernel stands in the checkout now.
    f'import os; os.chdir({str(here)!r})',
    *cells,  # As after a restart.
  ]
  notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
  out = printed(run(notebook, here))
  assert out.splitlines() == [f'installs in {here / "elt_jax"}'] * 3
  assert [path.name for path in here.iterdir()] == ['elt_jax']


def test_quickstart(tmp_path):
  done = execute('quickstart', QUICK | {'RUNS': str(tmp_path)})
  assert pictures(done) == 4  # Loss, samples, curve, film strip.
  out = printed(done)
  assert 'CPU of' in out and 'class accuracy' in out
  assert 'Step 20 of 20' in str(done.cells)
  assert (tmp_path / 'notebook_20_steps' / 'elastic.json').exists()
  assert printed(done, 'stderr') == ''


def test_sample_trains_and_its_sliders_draw(tmp_path):
  settings = TINY | {'RUNS': str(tmp_path), 'GUIDANCE_MODE': 'cfg'}
  done = execute('sample', settings, SLIDER + REFUSED)
  assert 'application/vnd.jupyter.widget-view+json' in str(done.cells)
  assert printed(done, 'stderr') == ''


def test_sample_without_widgets_has_plain_values(tmp_path):
  config = tiny_config()
  workdir = claim(config, tmp_path)
  settings = {'WORKDIR': workdir, 'RUNS': str(tmp_path), 'NUM': 2, 'LOOPS': 2}
  done = execute(
    'sample', settings, before='import sys\nsys.modules["ipywidgets"] = None'
  )
  assert pictures(done) == 1 and 'Without ipywidgets' in printed(done)
  (saved,) = tmp_path.glob('notebook_samples/*/*')
  assert saved.name == 'class3_seed0_L2_K4_cfg1.5.png'
  assert saved.parent.name.startswith('run_')


def test_sample_plays_clips(tmp_path):
  config = tiny_config()
  config.data.num_frames, config.model.patch_frames = 4, 2
  settings = {'WORKDIR': claim(config, tmp_path), 'RUNS': str(tmp_path)}
  check = """
import pathlib
import subprocess

assert bytes(shown.picture.value).startswith(b'GIF8')
assert [*shown.buttons] == ['.png', '.gif', '.mp4']
for button in shown.buttons.values():
  button.click()
saved = pathlib.Path(RUNS).glob('notebook_samples/*/*')
assert sorted(path.suffix for path in saved) == ['.gif', '.mp4', '.png']
"""
  execute('sample', settings | {'NUM': 2}, check)


def claim(config, tmp_path):
  """A workdir with a checkpoint of random weights."""
  workdir = tmp_path / 'run'
  config_lib.claim_workdir(config, workdir)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    state = Stack(config).create()
    checkpoints.save(state.replace(ema=noisy(state.ema, 0.3)))
  return str(workdir)


def test_maskgit():
  done = execute('maskgit', {'STEPS': 3, 'NUM': 2})
  assert pictures(done) == 5
  out = printed(done)
  assert 'Random weights:' in out and '3N x 1L, width 64' in out
  assert printed(done, 'stderr') == ''
