# shellcheck shell=bash
# What the tpu_*.sh scripts share: flags, errors, gcloud, the state of a slice.
# They source it; by itself it does nothing.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  printf 'Error: needs bash 4.4 or newer (macOS: brew install bash).\n' >&2
  exit 2
fi
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
project=${ELT_TPU_PROJECT:-}
zone=${ELT_TPU_ZONE:-}
name=${ELT_TPU_NAME:-}
dry_run=
rest=() # What follows `--`.

# ---- Messages ---------------------------------------------------------------
# On stderr: stdout is for the commands of a dry run and for what was asked.

say() { printf '%s\n' "$*" >&2; }

log() { say "$(date -u +%FT%TZ) $*"; }

# What a dry run has not done is not said.
report() { [[ -n $dry_run ]] || say "$@"; }

fail() {
  say "Error: $*"
  exit 1
}

usage_error() {
  say "Error: $* See --help."
  exit 2
}

# The comment at the head of the script is its --help.
print_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# ---- Flags ------------------------------------------------------------------

# Sets a variable for each flag: --dry-run sets dry_run.
#   parse 'flags with a value' 'flags without' "$@"
parse() {
  local values=" project zone name $1 " switches=" dry-run $2 " key
  shift 2
  while (($#)); do
    key=${1%%=*}
    key=${key#--}
    case $1 in
      --help) print_help && exit 0 ;;
      --) rest=("${@:2}") && break ;;
      --*=*)
        [[ $values == *" $key "* ]] || usage_error "No such flag: $1."
        printf -v "${key//-/_}" %s "${1#*=}"
        ;;
      --*)
        [[ $values != *" $key "* ]] || usage_error "$1 needs a value: $1=VALUE."
        [[ $switches == *" $key "* ]] || usage_error "No such flag: $1."
        printf -v "${key//-/_}" %s 1
        ;;
      *) usage_error "An argument without a flag: $1." ;;
    esac
    shift
  done
  require project zone name
  [[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
    usage_error "--name must be of lower-case letters, digits and hyphens, a" \
      "letter first, got '$name'."
}

require() {
  local key
  for key; do
    [[ -n ${!key} ]] ||
      usage_error "--$key is required, or ELT_TPU_${key^^} in the environment."
  done
}

require_integers() {
  local key
  for key; do
    [[ ${!key} =~ ^[0-9]+$ ]] ||
      usage_error "--${key//_/-} must be a whole number, got '${!key}'."
  done
}

# All workers read and write checkpoints there, and each writes its log.
require_workdir() {
  workdir=${workdir%/}
  require workdir
  require_address workdir
}

require_address() {
  [[ ${!1} =~ ^gs://[^[:space:]]+$ ]] ||
    usage_error "--$1 must be gs://BUCKET/DIRECTORY, got '${!1}'."
}

# ---- Commands ---------------------------------------------------------------

# Prints a command so that a shell reads it as it was given.
quote() {
  local word line=
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

run() {
  if [[ -n $dry_run ]]; then
    quote "$@"
  else
    "$@" || fail "exit code $? of: $(quote "$@")"
  fi
}

# Runs a command that asks; sets `output` and, to what is on stderr, `errors`.
ask() {
  local file code=0
  output='' errors=''
  if [[ -n $dry_run ]]; then
    quote "$@"
    return
  fi
  file=$(mktemp)
  output=$("$@" 2>"$file") || code=$?
  errors=$(<"$file")
  rm -f "$file"
  ((code == 0)) || errors+=$'\n'"Error: exit code $code of: $(quote "$@")"
  return "$code"
}

# ---- The slice --------------------------------------------------------------

# Sets `resource_state` and `vm_state`, and `state`, which sums them up: ACTIVE
# if both are up, NONE if there is no such resource, UNKNOWN if gcloud cannot
# tell. After a preemption the VM may be gone before the resource is not ACTIVE.
# A dry run takes $1 for the answer.
ask_state() {
  vm_state=NONE
  describe queued-resources 'value(state.state)' "$1"
  resource_state=$output
  state=$resource_state
  [[ $state == ACTIVE ]] || return 0
  describe tpu-vm 'value(state)' READY
  vm_state=$output
  case $vm_state in
    READY) ;;
    NONE) state=GONE ;;
    *) state=$vm_state ;;
  esac
}

describe() {
  if ! ask gcloud compute tpus "$1" describe "$name" --project="$project" \
    --zone="$zone" --format="$2"; then
    if [[ $errors == *NOT_FOUND* ]]; then
      output=NONE
    else
      say "$errors"
      output=UNKNOWN
    fi
  fi
  [[ -z $dry_run ]] || output=$3
}

# Whether `state` is one that nothing comes back from.
is_dead() {
  case $state in
    FAILED | SUSPENDING | SUSPENDED | DELETING) ;;
    PREEMPTED | TERMINATED | STOPPING | STOPPED | GONE) ;;
    *) return 1 ;;
  esac
}

# Sets `ssh_command`, which runs $2... on worker $1, a number or `all`. gcloud
# tries ten times: a worker that is gone must not take minutes each time.
build_ssh() {
  ssh_command=(gcloud compute tpus tpu-vm ssh "$name" --project="$project"
    --zone="$zone" --worker="$1" --ssh-flag=-oConnectTimeout=20
    --ssh-flag=-oServerAliveInterval=30 --command="$(quote "${@:2}")")
}

on_worker() {
  build_ssh "$@"
  run "${ssh_command[@]}"
}

# Sets `workers`, a line of each worker that answered:
#   worker HOST STATE EXIT_CODE ID WORKDIR
# Fails unless all of them did.
ask_workers() {
  local code=0
  build_ssh all bash tpu_worker.sh state
  if ! ask "${ssh_command[@]}"; then
    code=1
    say "$errors"
  fi
  workers=$(grep '^worker ' <<<"$output" || true)
  return "$code"
}

# The lines of `workers` in state $1, an extended regular expression.
workers_in() { grep -E "^worker [^ ]+ ($1) " <<<"$workers"; }

# ---- The code ---------------------------------------------------------------

# Sets `revision`, where it is not given, to what is checked out; fails if files
# differ from it.
set_revision() {
  local changes
  if [[ -n $revision ]]; then
    revision=$(git -C "$root" rev-parse -q --verify "$revision^{commit}") ||
      usage_error '--revision must name a commit of this clone.'
    return
  fi
  changes=$(git -C "$root" status --porcelain) ||
    fail "$root is not in a git clone, so there is no revision to copy."
  [[ -z $changes ]] ||
    fail "uncommitted changes, which would not be copied; commit them, or" \
      "give a --revision:"$'\n'"$changes"
  revision=$(git -C "$root" rev-parse HEAD)
}
