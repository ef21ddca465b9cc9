#!/usr/bin/env bash
# Shows the state of a slice, of the run on every worker, and the end of a log.
#
#   launch/tpu_status.sh --project=P --zone=Z --name=N
#
#   --project --zone --name   or ELT_TPU_PROJECT, ELT_TPU_ZONE, ELT_TPU_NAME
#   --worker=0    whose log; worker 0 logs the progress
#   --lines=20    of the log
#   --dry-run     prints the commands and runs nothing
#
# A line of each worker: host, state, exit code, start, workdir. The states:
#   idle        nothing was started here
#   running     alive
#   finished    trained to the end
#   failed      ended by its own error
#   stopped     ended by tpu_stop.sh
#   terminated  told to end, here or on another worker, by a VM that shuts down
#   lost        ended without a trace: the VM was started anew

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

main() {
  worker=0 lines=20
  parse 'worker lines' '' "$@"
  require_integers worker lines

  ask_state ACTIVE
  [[ -n $dry_run ]] ||
    printf 'queued resource %s, VM %s\n' "$resource_state" "$vm_state"
  [[ $state == ACTIVE ]] || fail "$name is not up."
  ask_workers || say "Error: not every worker of $name answered."
  [[ -n $dry_run ]] || printf '%s\n' "$workers"
  on_worker "$worker" bash tpu_worker.sh log "$lines"
}

main "$@"
