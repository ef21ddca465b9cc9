#!/usr/bin/env bash
# Asks for a TPU slice as a queued resource and waits until it is up.
#
#   launch/tpu_create.sh --project=P --zone=Z --name=N \
#       --type=v5litepod-16 --spot
#
#   --project --zone --name --type   or ELT_TPU_PROJECT, ELT_TPU_ZONE,
#                    ELT_TPU_NAME, ELT_TPU_TYPE in the environment
#   --spot           cheaper, and may be preempted at any time
#   --reserved       from a reservation; without either, on demand
#   --runtime-version=V   default: the one for JAX on this --type
#   --timeout=21600  seconds to wait; the request stays in the queue after them
#   --poll=30        seconds between two looks at the state
#   --dry-run        prints the commands and runs nothing
#
# Run again, it goes on waiting for the same request.

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

# https://cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX".
default_runtime_version() {
  case $type in
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime_version=tpu-ubuntu2204-base ;;
    *) usage_error "No default --runtime-version for --type=$type." ;;
  esac
}

create() {
  local command=(gcloud compute tpus queued-resources create "$name"
    --project="$project" --zone="$zone" --node-id="$name"
    --accelerator-type="$type" --runtime-version="$runtime_version")
  [[ -z $spot ]] || command+=(--spot)
  [[ -z $reserved ]] || command+=(--reserved)
  run "${command[@]}"
  ask_state ACTIVE
}

wait_until_active() {
  local deadline=$((SECONDS + timeout)) last=
  until [[ $state == ACTIVE ]]; do
    [[ $state == "$last" ]] || log "$name: $state"
    last=$state
    if is_dead || [[ $state == NONE ]]; then
      fail "$name became $state; 'gcloud compute tpus queued-resources" \
        "describe' says why."
    fi
    ((SECONDS < deadline)) ||
      fail "$name is still $state after $timeout seconds. It stays in the" \
        "queue, and is paid for once it is up: run this again to go on" \
        "waiting, or delete it with tpu_stop.sh --delete."
    sleep "$poll"
    ask_state ACTIVE
  done
}

main() {
  type=${ELT_TPU_TYPE:-} spot='' reserved='' runtime_version='' timeout=21600
  poll=30
  parse 'type runtime-version timeout poll' 'spot reserved' "$@"
  require type
  require_integers timeout poll
  [[ -z $spot || -z $reserved ]] ||
    usage_error '--spot and --reserved: give one of them.'
  [[ -n $runtime_version ]] || default_runtime_version

  ask_state NONE
  if [[ $state == UNKNOWN ]]; then
    fail "the state of $name is unknown; nothing was created."
  elif is_dead; then
    fail "there is a $name already, $state: tpu_stop.sh --delete deletes it."
  elif [[ $state == NONE ]]; then
    create
  fi
  wait_until_active
  report "$name is up."
}

main "$@"
