#!/usr/bin/env bash
# Starts a command on every worker of a slice, and leaves it running: a training,
# or what measures it.
#
#   launch/tpu_run.sh --project=P --zone=Z --name=N --workdir=gs://BUCKET/RUN \
#       -- --config=configs/mnist_diffusion.py --config.train.num_steps=1000
#
#   --project --zone --name --workdir   or ELT_TPU_PROJECT, ELT_TPU_ZONE,
#                     ELT_TPU_NAME, ELT_TPU_WORKDIR in the environment
#   --command=train   or evaluate, sample, calibrate: python -m elt_jax.COMMAND
#   --log-seconds=60  between two copies of the logs to the bucket
#   --dry-run         prints the commands and runs nothing
#
# After `--` come the arguments of the command; --multihost and --workdir are
# added. Each worker writes ~/elt_jax/runs/latest/log and copies
# it to WORKDIR/worker_logs/. The same command goes on where the last one ended;
# while a run is alive on any worker it is refused.

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

main() {
  local alive id
  workdir=${ELT_TPU_WORKDIR:-} command=train log_seconds=60
  parse 'workdir command log-seconds' '' "$@"
  require_workdir
  require_integers log_seconds
  case $command in
    train)
      ((${#rest[@]})) || usage_error 'Nothing to train: give -- --config=FILE.'
      ;;
    evaluate | sample | calibrate) ;;
    *) usage_error "--command is train, evaluate, sample or calibrate," \
      "not $command." ;;
  esac

  ask_workers ||
    fail "not every worker of $name answered; nothing was started. Has" \
      "tpu_setup.sh been run?"
  if alive=$(workers_in running); then
    fail "a run is alive, which tpu_stop.sh ends:"$'\n'"$alive"
  fi
  id=$(date -u +%Y%m%dT%H%M%SZ)-$$
  (on_worker all bash tpu_worker.sh start "$id" "$log_seconds" "$workdir" \
    "$command" "${rest[@]}") ||
    fail 'not started on every worker; tpu_stop.sh ends the others.'
  report "Started as $id; tpu_status.sh shows it."
}

main "$@"
