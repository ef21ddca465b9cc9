"""The sweep runner: what it starts, where, what it skips, what it writes."""

import csv
import fcntl
import json
import os
import pathlib
import re
import signal
import sys
import threading

from commands import ROOT
from fake_gcloud import wait_for
import pytest
from sweep_stubs import STUB, stub

from elt_jax import config as config_lib
from elt_jax import hyper
from launch import sweep, sweep_processes, sweep_runs

# Config files are loaded as ml_collections loads them.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')
FILES = sorted((ROOT / 'configs' / 'sweeps').glob('*.py'))
SWEEP = """
from elt_jax.hyper import sweep
CONFIG = 'configs/mnist_diffusion.py'
LOOPS = '1,2'
def get_sweep():
  return [*sweep('train.seed', [1, 2]), {'name': 'one', 'loops': '1'}]
"""
NAMES = ['seed=1', 'seed=2', 'one']


class Runner:
  """Sweeps of a file in a directory, with stubs in place of the commands."""

  def __init__(self, path: pathlib.Path, monkeypatch, capsys):
    self.path, self.workdir = path, path / 'w'
    self._monkeypatch, self._capsys = monkeypatch, capsys
    (path / 'stub.py').write_text(STUB)
    self.write(SWEEP)
    for command in ('train', 'evaluate'):
      monkeypatch.setattr(
        sweep, f'{command}_command', stub(command, str(path / 'stub.py'))
      )

  def write(self, text: str) -> None:
    (self.path / 'sweep.py').write_text(text)

  def __call__(self, *args: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a start that must end with `code`."""
    own = [f'--sweep={self.path}/sweep.py', f'--workdir={self.workdir}']
    self._monkeypatch.setattr(sys, 'argv', ['sweep', *own, *args])
    with pytest.raises(SystemExit) as ended:
      sweep.command()
    printed = self._capsys.readouterr()
    assert ended.value.code == code, printed
    return printed

  def calls(self) -> list[str]:
    """What was started since the last call of this."""
    path = self.path / 'calls'
    if not path.exists():
      return []
    lines = path.read_text().splitlines()
    path.unlink()
    return [line.strip() for line in lines]

  def rows(self) -> list[dict[str, str]]:
    with (self.workdir / 'summary.csv').open() as file:
      return list(csv.DictReader(file))


@pytest.fixture
def runner(tmp_path, monkeypatch, capsys):
  return Runner(tmp_path, monkeypatch, capsys)


# ---- One after the other -----------------------------------------------------


def test_runs_each_once_and_summarizes(runner):
  out, _ = runner()
  assert runner.calls() == [
    f'{command} {name}' for name in NAMES for command in ('train', 'evaluate')
  ]
  rows = runner.rows()
  assert list(rows[0])[:4] == ['run', 'train.seed', 'loops', 'fd_lenet']
  assert [(r['run'], r['train.seed'], r['loops']) for r in rows] == [
    ('seed=1', '1', '1'),
    ('seed=1', '1', '2'),
    ('seed=2', '2', '1'),
    ('seed=2', '2', '2'),
    ('one', '', '1'),
  ]
  assert (runner.workdir / 'summary.png').stat().st_size > 1000
  assert re.search(r'seed=2 +2 +0\.50 +0\.500 +2\.00 +0\.100\n', out)
  log = (runner.workdir / 'one' / 'sweep.log').read_text()
  assert log.count('$ ') == 2 and 'stub.py evaluate' in log

  # Started again, only what is missing or of another recipe is done.
  out, _ = runner()
  assert runner.calls() == [] and 'one: was finished' in out
  (runner.workdir / 'one' / 'elastic.json').unlink()
  runner()
  assert runner.calls() == ['evaluate one']
  runner('--num=9')
  assert runner.calls() == [f'evaluate {name}' for name in NAMES]
  for key in ('checkpoint_step', 'seed'):
    path = runner.workdir / 'one' / 'elastic.json'
    report = json.loads(path.read_text())
    report['recipe'][key] += 1
    path.write_text(json.dumps(report))
    runner('--num=9')
    assert runner.calls() == ['evaluate one']
  runner.write(SWEEP.replace("'loops': '1'", "'loops': '3'"))
  runner('--num=9')
  assert runner.calls() == ['evaluate one']
  guided = "'loops': '3', 'overrides': {'sample.guidance': 7.0}"
  runner.write(SWEEP.replace("'loops': '1'", guided))
  runner('--num=9')
  assert runner.calls() == ['evaluate one']
  assert config_lib.load(runner.workdir / 'one').sample.guidance == 7
  # A training that did not come to its end goes on.
  name = runner.workdir / 'one' / 'checkpoints'
  (step,) = name.iterdir()
  step.rename(name / '1')
  runner('--num=9')
  assert runner.calls() == ['train one']


def test_without_loops_a_sweep_only_trains(runner):
  runner.write(SWEEP.replace("'1,2'", "''").replace("'loops': '1'", ''))
  out, _ = runner()
  assert runner.calls() == [f'train {name}' for name in NAMES]
  assert 'nothing to summarize' in out
  assert not (runner.workdir / 'summary.csv').exists()


def test_a_failed_run_does_not_end_the_others(runner):
  (runner.path / 'bad seed=2').write_text('')
  out, err = runner(code=1)
  assert runner.calls().count('train seed=2') == 1
  assert {row['run'] for row in runner.rows()} == {'seed=1', 'one'}
  assert 'seed=2: failed: exit code 1: Error: of the stub' in out
  assert err == 'Error: seed=2: exit code 1: Error: of the stub\n'
  (runner.path / 'bad seed=2').unlink()
  runner()
  assert runner.calls() == ['train seed=2', 'evaluate seed=2']
  assert [row['run'] for row in runner.rows()][2:4] == ['seed=2'] * 2


def test_an_unreadable_report_is_missed_and_fails_its_own_run_alone(runner):
  runner()
  (runner.workdir / 'seed=1' / 'elastic.json').write_text('{')
  (runner.workdir / 'seed=2' / 'elastic.json').unlink()
  out, err = runner(code=1)
  assert 'seed=2: finished' in out
  assert 'seed=1: not in the summary: JSONDecodeError' in out
  assert (
    err.startswith('Error: seed=1: JSONDecodeError') and 'seed=2' not in err
  )
  assert {row['run'] for row in runner.rows()} == {'seed=2', 'one'}


@pytest.mark.parametrize(
  'number,code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_told_to_stop_it_lets_the_runs_save(runner, number, code):
  (runner.path / 'together').write_text('99')
  before = signal.getsignal(number)

  def stop():
    wait_for((runner.path / 'began seed=1').exists)
    os.kill(os.getpid(), number)

  threading.Thread(target=stop).start()
  out, _ = runner(code=code)
  assert 'Stopped' in out
  assert runner.calls() == ['train seed=1']
  assert (runner.workdir / 'seed=1' / 'saved').exists()
  assert signal.getsignal(number) == before
  (runner.path / 'together').unlink()
  runner()
  assert len(runner.calls()) == 6


def test_a_second_sweep_waits_for_the_first(runner):
  runner.workdir.mkdir()
  with (runner.workdir / 'sweep.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    timer = threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN))
    timer.start()
    out, _ = runner()
    timer.join()
  assert out.splitlines()[0] == (
    f'Another sweep is alive in {runner.workdir}; waits for its end'
  )
  assert len(runner.calls()) == 6


@pytest.mark.parametrize(
  'entry,message',
  [
    ("{'optim.lr': 1.0}", 'mnist_diffusion.py has no key optim.lr'),
    ("{'model.width.x': 1}", 'has no key model.width.x'),
    ("{'model.max_loops': 0}", 'model.max_loops'),
    ("{'model.max_loops': 0.5}", "invalid literal for int.*'0.5'"),
    ("{'model.max_loops': '4'}", "= '4' would be 4 after its way"),
    ("{'model.num_heads': 7}", 'width'),
    ("{}, 'loops': '1,sideways'", 'sideways'),
    ("{}, 'loops': [1]", "loops are text, as in '1,2,4'; got .1."),
    ("{}, 'config': 'configs/mnist_tokenizer.py'", 'a tokenizer has no loops'),
    ("{}, 'config': 'configs/none.py'", 'no config file configs/none.py'),
    ("{}, 'config': 'configs/mnist_masked.py:x'", "no variant 'x'"),
  ],
)
def test_a_bad_run_is_named_before_anything_starts(runner, entry, message):
  runner.write(SWEEP.replace("'loops': '1'", f"'overrides': {entry}"))
  _, err = runner(code=2)
  assert re.fullmatch(f'Error: Run one: .*{message}.*\n', err)
  assert not runner.calls() and not runner.workdir.exists()


def test_a_workdir_of_another_config_is_refused_before_anything_starts(runner):
  runner()
  runner.calls()
  added = "'name': 'one', 'overrides': {'optim.b2': 0.5}"
  runner.write(SWEEP.replace("'name': 'one'", added))
  (runner.workdir / 'seed=1' / 'elastic.json').unlink()
  _, err = runner(code=2)
  assert 'Run one: ' in err and 'optim.b2: 0.99 there, 0.5 here' in err
  assert not runner.calls()


@pytest.mark.parametrize(
  'text,message',
  [
    ('CONFIG = 1', 'defines no LOOPS'),
    ('CONFIG = nothing', "sweep.py: NameError: name 'nothing'"),
    (SWEEP.replace('[1, 2]', '[1, 1]'), 'seed=1 and seed=1 are the same'),
    (SWEEP.replace('[1, 2]', '[]'), 'train.seed has no values'),
    (SWEEP.replace('[1, 2]', '1'), 'get_sweep: TypeError: '),
  ],
)
def test_bad_sweep_files_end_with_a_message(runner, text, message):
  runner.write(text)
  _, err = runner(code=2)
  assert re.fullmatch(f'Error: .*{message}.*\n', err)


@pytest.mark.parametrize(
  'args,message',
  [
    (['--sweep=none.py'], 'no sweep file none.py'),
    (['--parallel=0'], '--parallel=0'),
    (['--num=1'], '--num must be at least 2'),
    (['--tpu=2'], '--tpu needs --workdir=gs://'),
    (['--tpu=2', '--parallel=2'], '--parallel and --tpu: give one of them'),
    (['--', '--type=v6e-8'], '--type=v6e-8, after --, is for --tpu'),
    (['more'], 'Arguments without a flag: more'),
  ],
)
def test_bad_arguments_end_with_a_message(runner, args, message):
  _, err = runner(*args, code=2)
  assert message in err and not runner.calls()


def test_list_and_dry_run_start_nothing(runner, monkeypatch):
  out, _ = runner('--list')
  assert out.splitlines()[1] == (
    'seed=2\t--config=configs/mnist_diffusion.py --config.train.seed=2'
  )
  monkeypatch.undo()
  monkeypatch.setattr(sweep, 'evaluate_command', lambda *_: ['evaluate'])
  out, _ = runner('--dry_run')
  lines = out.splitlines()
  assert lines[0].endswith(
    f'-m elt_jax.train --workdir={runner.workdir}/seed=1 '
    '--config=configs/mnist_diffusion.py --config.train.seed=1'
  )
  assert lines[1] == 'evaluate' and len(lines) == 6
  assert not runner.workdir.exists()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_runs_of_sweep_files_are_valid(path):
  jobs = sweep_runs.make_jobs(sweep_runs.load(str(path)), 'w')
  assert len(jobs) >= 2
  assert all(re.fullmatch('[A-Za-z0-9_]+', job.name) for job in jobs)


def test_overrides_arrive_as_they_are():
  overrides = {
    'profile.steps': (3, 4),
    'tokenizer.temporal_downsample': (True, False),
    'data.source': "npz:a 'b', c=d",
    'tokenizer.inflate_from': '',
    'optim.learning_rate': 1 / 3,
    'data.flip': True,
  }
  run = hyper.Run(overrides, 'a', 'configs/mnist_diffusion.py')
  config = sweep_runs.build_config(run)
  for key, value in overrides.items():
    section, name = key.split('.')
    assert config[section][name] == value


# ---- Several at a time -------------------------------------------------------


def test_parallel_runs_are_alive_at_once_with_devices_of_their_own(
  runner, monkeypatch
):
  monkeypatch.setenv('JAX_PLATFORMS', '')
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
  monkeypatch.setattr(sweep_processes, 'tpu_chips', list)
  monkeypatch.setattr(sweep_processes, '_CUDA', ('jax',))
  (runner.path / 'together').write_text('2')  # Alone, a stub fails.
  out, _ = runner('--parallel=2', '--dry_run')
  assert '# with CUDA_VISIBLE_DEVICES=4,5\n' in out
  runner('--parallel=2')
  calls = runner.calls()
  assert len(calls) == 6
  begun = {call.split()[1]: call.split()[2] for call in calls[:2]}
  assert begun == {'seed=1': begun['seed=1'], 'seed=2': begun['seed=2']}
  assert set(begun.values()) == {'4,5', '6,7'}
  # A run is evaluated where it was trained.
  assert len({tuple(call.split()[1:]) for call in calls}) == 3
  assert len(runner.rows()) == 5
