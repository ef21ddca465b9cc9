#!/usr/bin/env bash
# Stops the run on every worker of a slice; with --delete, deletes the slice.
#
#   launch/tpu_stop.sh --project=P --zone=Z --name=N [--delete]
#
#   --project --zone --name   or ELT_TPU_PROJECT, ELT_TPU_ZONE, ELT_TPU_NAME
#   --grace=600   seconds to save a checkpoint in, after SIGTERM; then SIGKILL
#   --delete      deletes the VMs and the queued resource, and asks before
#   --yes         does not ask
#   --dry-run     prints the commands and runs nothing
#
# Everything in the bucket stays.

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

stop_run() { on_worker all bash tpu_worker.sh stop "$grace"; }

confirm() {
  local answer
  [[ -z $yes && -z $dry_run ]] || return 0
  [[ -t 0 ]] || usage_error '--delete asks; without a terminal give --yes.'
  read -r -p "Delete $name ($state) in $zone of $project? [y/N] " answer
  [[ $answer == [yY]* ]] || fail 'nothing was deleted.'
}

delete() {
  ask_state ACTIVE
  [[ $state != UNKNOWN ]] || fail "the state of $name is unknown."
  if [[ $state == NONE ]]; then
    say "There is no $name."
    return
  fi
  confirm
  if [[ $state == ACTIVE ]]; then
    (stop_run) || say "Not stopped on every worker; deleted all the same."
  fi
  # --force: with its VMs. --quiet: asked above.
  run gcloud compute tpus queued-resources delete "$name" \
    --project="$project" --zone="$zone" --force --quiet
  report "$name is deleted."
}

main() {
  grace=600 delete='' yes=''
  parse grace 'delete yes' "$@"
  require_integers grace
  if [[ -n $delete ]]; then delete; else stop_run; fi
}

main "$@"
