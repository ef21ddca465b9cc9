"""The notebooks' installer: what it would install, where, and when nothing."""

import fnmatch
import importlib.util
import types

import pytest

from tests.commands import ROOT


@pytest.fixture
def install():
  path = ROOT / 'launch' / 'colab' / 'install.py'
  spec = importlib.util.spec_from_file_location('install', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def machine(install, monkeypatch):
  """Says what the machine has; records what is run."""

  def has(devices=(), driver=None, importable=(True,), code=0):
    ran, answers = [], iter(importable)
    smi = f'| NVIDIA-SMI 1.2  Driver Version: 1.2  CUDA Version: {driver} |'
    which = '/usr/bin/nvidia-smi' if driver else None

    def run(command, **kwargs):
      ran.append(command)
      done = types.SimpleNamespace(returncode=code, stdout=smi)
      if '-c' in command:
        done.returncode = 0 if next(answers) else 1
      return done

    seen = lambda pattern: fnmatch.filter(devices, pattern)
    monkeypatch.setattr(install.glob, 'glob', seen)
    monkeypatch.setattr(install.shutil, 'which', lambda name: which)
    monkeypatch.setattr(install.subprocess, 'run', run)
    return ran

  return has


@pytest.mark.parametrize(
  'has,extra',
  [
    ({}, ''),
    ({'driver': '12.4'}, 'cuda12'),
    ({'driver': '13.0'}, 'cuda13'),
    ({'driver': 'ERR!'}, 'cuda12'),
    ({'devices': ['/dev/accel0']}, 'tpu'),
    ({'devices': ['/dev/vfio/0']}, 'tpu'),
    ({'devices': ['/dev/vfio/vfio', '/dev/accel']}, ''),
    ({'devices': ['/dev/vfio/0'], 'driver': '12.4'}, 'cuda12'),
  ],
)
def test_jax_is_that_of_the_devices(install, machine, has, extra):
  machine(**has)
  assert install.jax_extra() == extra


def test_where_everything_is_there_nothing_is_installed(
  install, machine, capsys
):
  ran = machine(driver='12.4')
  install.main()
  assert len(ran) == 1 and 'pip' not in ran[0]
  assert 'Everything is there' in capsys.readouterr().out


def test_what_is_missing_is_installed_with_one_command(
  install, machine, capsys
):
  ran = machine(driver='12.4', importable=(False, True))
  install.main()
  (pip,) = [command for command in ran if 'pip' in command]
  requirements = str(ROOT / 'requirements.txt')
  assert pip[1:] == [
    *('-m', 'pip', 'install', '--quiet'),
    *('-r', requirements, 'jax[cuda12]'),
  ]
  assert 'Installed' in capsys.readouterr().out


@pytest.mark.parametrize(
  'importable,code', [((False,), 1), ((False, False), 0)]
)
def test_a_failure_is_one(install, machine, importable, code):
  machine(importable=importable, code=code)
  with pytest.raises(SystemExit, match='failed'):
    install.main()


def test_it_finds_this_checkout_importable(install, monkeypatch):
  assert install.ROOT == ROOT
  here = 'import elt_jax.evaluate, elt_jax.train, elt_jax.panel'
  monkeypatch.setattr(install, 'IMPORTS', here)
  assert install.importable()
  monkeypatch.setattr(install, 'IMPORTS', 'import elt_jax.nothing')
  assert not install.importable()
