#!/usr/bin/env bash
# What happens on one worker of a slice: the other scripts run it through ssh.
#
#   tpu_worker.sh setup REVISION DATE [DATA]   installs ~/elt_jax.tar.gz, and
#                                       copies DATA of a bucket
#   tpu_worker.sh start ID SECONDS WORKDIR COMMAND ARGS...   trains, detached,
#                                       or measures
#   tpu_worker.sh state                 a line of the latest run
#   tpu_worker.sh log LINES             the end of its log
#   tpu_worker.sh stop SECONDS          SIGTERM, and SIGKILL after SECONDS
#
# All of it lies in ~/elt_jax: code, venv, revision, data, which a setup leaves
# there, and a directory for every start, runs/ID, with log, pid, workdir and, at
# the end, outcome. A run is alive while ~/elt_jax/lock is locked: the training
# and its supervisor hold it open, so that it is free however they end, and not
# before the TPU is.

set -euo pipefail
readonly BASE=$HOME/elt_jax
readonly LATEST=$BASE/runs/latest

fail() {
  printf 'Error on %s: %s\n' "$HOSTNAME" "$*" >&2
  exit 1
}

# A run holds the lock alone; who only asks holds it shared, for a moment.
alive() { [[ -e $BASE/lock ]] && ! is_free_in 0; }

is_free_in() { flock --shared --timeout="$1" "$BASE/lock" true; }

setup() {
  local revision=$1 date=$2 data=${3:-} uv=$HOME/.local/bin/uv
  ! alive || fail 'a run is alive; stop it before its code is replaced.'
  # Without a revision nothing starts.
  rm -rf "$BASE/revision" "$BASE/code" "$BASE/venv"
  mkdir -p "$BASE/code" "$BASE/data"
  tar -xzf "$HOME/elt_jax.tar.gz" -C "$BASE/code"
  ln -s "$BASE/data" "$BASE/code/data"
  # The Python of the VM may be older than 3.11, and uv brings its own.
  [[ -x $uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
  "$uv" venv --quiet --python=3.12 "$BASE/venv"
  "$uv" pip install --quiet --python="$BASE/venv/bin/python" \
    --exclude-newer="$date" --requirement="$BASE/code/requirements.txt" \
    'jax[tpu]'
  if [[ -n $data ]]; then
    gcloud storage rsync --quiet --recursive "$data" "$BASE/data"
  fi
  printf '%s\n' "$revision" >"$BASE/revision"
}

# The name has the start and the host: logs of a preempted VM stay beside those
# of the next.
upload() {
  timeout 120 gcloud storage cp --quiet "$1/log" \
    "$(<"$1/workdir")/worker_logs/${1##*/}-$HOSTNAME.log"
}

start() {
  local id=$1 workdir=$3 run=$BASE/runs/$1
  [[ -e $BASE/revision ]] || fail 'not set up; run tpu_setup.sh.'
  # gcloud runs a command again when the connection broke in the middle.
  [[ ! -e $run ]] || return 0
  name_hosts
  exec 9>"$BASE/lock"
  flock --timeout=1 9 || fail 'a run is alive.'
  mkdir -p "$run.new"
  printf '%s\n' "$workdir" >"$run.new/workdir"
  printf '%s revision %s, workdir %s, %s\n' "$id" "$(<"$BASE/revision")" \
    "$workdir" "${*:4}" >"$run.new/log"
  mv "$run.new" "$run"
  if ! upload "$run"; then
    rm -r "$run"
    fail "$workdir cannot be written; nothing was started."
  fi
  ln -sfn "$id" "$LATEST"
  setsid --fork bash "$0" supervise "$@" </dev/null >/dev/null 2>&1
}

# Tells --multihost who the hosts are, in the way JAX would find it out: a host
# that does not come is then named. Where the VM does not say, JAX looks itself.
name_hosts() {
  local endpoints number hosts
  endpoints=$(metadata worker-network-endpoints) || return 0
  number=$(metadata agent-worker-number) || return 0
  # Of each host its address alone, or name:id:address.
  IFS=, read -ra hosts <<<"$endpoints"
  export JAX_COORDINATOR_ADDRESS=${hosts[0]##*:}:8482
  export JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$number
}

metadata() {
  curl -sf --retry 5 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

# Runs the training, copies its log to the bucket, and notes how it ended.
supervise() {
  local run=$BASE/runs/$1 seconds=$2 workdir=$3 terminated='' code=0 pid
  # A VM that shuts down sends SIGTERM to all processes. It is not passed on: at
  # the second one the training would end before it has saved.
  trap 'terminated=1' TERM
  cd "$BASE/code"
  # In the bucket: a preempted run does not compile again.
  export JAX_COMPILATION_CACHE_DIR=$workdir/compilation_cache
  "$BASE/venv/bin/python" -u -m "elt_jax.$4" --multihost \
    --workdir="$workdir" "${@:5}" </dev/null >>"$run/log" 2>&1 &
  pid=$!
  printf '%s\n' "$pid" >"$run/pid.new"
  mv "$run/pid.new" "$run/pid" # Whole from the first moment.
  while kill -0 "$pid" 2>/dev/null; do
    # Sleeps, but not beyond the end of the training.
    timeout "$seconds" tail --pid="$pid" -s 0.2 -f /dev/null 9>&- || true
    upload "$run" >"$run/upload" 2>&1 9>&- || true
  done
  wait "$pid" || code=$?
  note_outcome
}

note_outcome() {
  local outcome=failed
  if [[ -e $run/stop ]]; then
    outcome=stopped
  elif [[ -n $terminated ]] || ((code == 143)); then # Told on another host.
    outcome=terminated
  elif ((code == 0)); then
    outcome=finished
  fi
  printf '%s %s\n' "$outcome" "$code" >"$run/outcome"
  printf '%s, exit code %s\n' "$outcome" "$code" >>"$run/log"
  upload "$run" >"$run/upload" 2>&1 || true
}

state() {
  local outcome=idle code=- id=- workdir=-
  if [[ -e $LATEST ]]; then
    id=$(readlink "$LATEST")
    workdir=$(<"$LATEST/workdir")
    # In this order: the outcome is noted before the lock is free.
    if alive; then
      outcome=running
    elif [[ -e $LATEST/outcome ]]; then
      read -r outcome code <"$LATEST/outcome"
    else
      outcome=lost
    fi
  fi
  printf 'worker %s %s %s %s %s\n' "$HOSTNAME" "$outcome" "$code" "$id" \
    "$workdir"
}

stop() {
  local seconds=$1 pid
  if alive; then
    pid=$(<"$LATEST/pid")
    # Once, even if gcloud runs this again: a second SIGTERM ends the training
    # before it has saved.
    if (set -o noclobber && : >"$LATEST/stop") 2>/dev/null; then
      kill -TERM "$pid" || true
    fi
    if ! is_free_in "$seconds"; then
      printf '%s: killed after %s seconds.\n' "$HOSTNAME" "$seconds" >&2
      kill -KILL "$pid" || true
      is_free_in 30 ||
        fail "a process of the run is left: fuser -v $BASE/lock"
    fi
  fi
  state
}

case ${1:-} in
  --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
  setup) setup "${@:2}" ;;
  start) start "${@:2}" ;;
  supervise) supervise "${@:2}" ;;
  state) state ;;
  log) tail -n "$2" "$LATEST/log" ;;
  stop) stop "$2" ;;
  *) fail "no such command: $*" ;;
esac
