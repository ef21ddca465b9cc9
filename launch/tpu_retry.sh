#!/usr/bin/env bash
# Trains to the end, on as many slices as it takes: creates one, sets it up,
# starts the run, watches it, and does so again after a preemption.
#
#   launch/tpu_retry.sh --project=P --zone=Z --name=N --type=v5litepod-16 \
#       --spot --workdir=gs://BUCKET/RUN -- --config=configs/mnist_diffusion.py
#
#   --project --zone --name --type --workdir   or ELT_TPU_PROJECT, ELT_TPU_ZONE,
#                    ELT_TPU_NAME, ELT_TPU_TYPE, ELT_TPU_WORKDIR
#   --spot --reserved --runtime-version --timeout   as of tpu_create.sh
#   --data --revision   as of tpu_setup.sh
#   --attempts=20    to get the run going, in all; 0 is without limit
#   --backoff=60     seconds before the next attempt; doubled, up to half an
#                    hour, for each that got nothing going
#   --poll=60        seconds between two looks
#   --grace=300      seconds that a run that ended, or a worker that does not
#                    answer, is given to turn out to be a preemption
#   --dry-run        prints the commands of one attempt and runs nothing
#
# Every attempt uses one revision, by default the one checked out at the first.
# The run resumes from the workdir by itself. Ends with 0 when the run has
# trained to the end, with 1 when it failed by its own error, when it was
# stopped or the slice deleted by hand, or when no attempts are left.
# Interrupted, it leaves slice and run as they are; started again, it goes on
# watching.

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

# Runs another script on this slice. Wrong arguments stay wrong: no retry.
step() {
  local code=0
  "$root/launch/$1" --project="$project" --zone="$zone" --name="$name" \
    ${dry_run:+--dry-run} "${@:2}" || code=$?
  ((code != 2)) || exit 2
  return "$code"
}

delete_slice() { step tpu_stop.sh --delete --yes; }

# Makes the slice be up, set up, and running.
bring_up() {
  local before
  ask_state NONE
  before=$state
  if is_dead; then delete_slice || return; fi
  step tpu_create.sh --type="$type" ${spot:+--spot} ${reserved:+--reserved} \
    --runtime-version="$runtime_version" --timeout="$timeout" \
    --poll="$poll" || return
  if [[ $before == ACTIVE ]] && already_runs; then return; fi
  step tpu_setup.sh --revision="$revision" ${data:+--data="$data"} || return
  step tpu_run.sh --workdir="$workdir" -- "${rest[@]}"
}

# Whether the run is alive on every worker that answers. Half a run is stopped.
already_runs() {
  local running
  ask_workers || true
  running=$(workers_in running) || return
  if cut -d ' ' -f 6 <<<"$running" | grep -qvxF "$workdir"; then
    fail "another run is alive on $name:"$'\n'"$running"
  fi
  [[ $running != "$workers" ]] || return 0
  step tpu_stop.sh
  return 1
}

# Deletes a slice that is up, and yet could not be set up or started three
# times in a row.
replace_if_unusable() {
  ask_state ACTIVE
  if [[ $state == ACTIVE ]] && ((++failures % 3 == 0)); then
    log "$name is up, and could not be used $failures times: deleted"
    delete_slice || true
  fi
}

# Sets `verdict` when the run is over. That it failed, or that a worker is
# silent, may be the first sign of a preemption: it is believed after `grace`.
watch_run() {
  local since=
  while :; do
    sleep "$poll"
    ask_state ACTIVE
    case $state in
      UNKNOWN) continue ;;
      # A preemption leaves the queued resource behind.
      NONE | DELETING) verdict=deleted && return ;;
    esac
    if is_dead; then verdict=preempted && return; fi
    judge
    case $verdict in
      running) since= ;;
      finished | stopped) return ;;
      *)
        [[ -n $since ]] || log "$verdict; a preemption? waits $grace s"
        since=${since:-$SECONDS}
        ((SECONDS - since < grace)) || return 0
        ;;
    esac
  done
}

judge() {
  verdict=unreachable
  if ! ask_workers; then
    return
  elif workers_in stopped >/dev/null; then
    verdict=stopped
  elif workers_in 'lost|terminated|idle' >/dev/null; then
    verdict=lost
  elif workers_in failed >/dev/null; then
    verdict=failed
  elif workers_in running >/dev/null; then
    verdict=running
  elif workers_in finished >/dev/null; then
    verdict=finished
  fi
}

# Ends this script unless another attempt is due.
conclude() {
  local host
  log "the run is $verdict"
  case $verdict in
    finished)
      say "$name is still up; tpu_stop.sh --delete deletes it."
      exit 0
      ;;
    stopped) fail 'stopped by tpu_stop.sh, and not started again.' ;;
    deleted) fail "$name was deleted, and is not created again." ;;
    failed)
      host=$(workers_in failed | head -n 1 | cut -d ' ' -f 2)
      (step tpu_status.sh --worker="${host##*-}") >&2 || true
      fail "the run failed by its own error, not by a preemption; $name is" \
        "still up, and the logs are in $workdir/worker_logs/."
      ;;
    unreachable) delete_slice || true ;;
  esac
}

main() {
  local attempt pause failures=0
  type=${ELT_TPU_TYPE:-} workdir=${ELT_TPU_WORKDIR:-} spot='' reserved=''
  runtime_version='' timeout=21600 attempts=20 backoff=60 poll=60 grace=300
  data='' revision=''
  parse 'type workdir data revision runtime-version timeout attempts backoff poll grace' \
    'spot reserved' "$@"
  require type
  require_workdir
  [[ -z $data ]] || require_address data
  require_integers timeout attempts backoff poll grace
  ((${#rest[@]})) || usage_error 'Nothing to train: give -- --config=FILE.'
  set_revision
  if [[ -n $dry_run ]]; then
    bring_up
    ask_state ACTIVE
    ask_workers
    exit
  fi

  pause=$backoff
  for ((attempt = 1; attempts == 0 || attempt <= attempts; attempt++)); do
    log "attempt $attempt"
    if bring_up; then
      failures=0 pause=$backoff
      watch_run
      conclude
    else
      replace_if_unusable
    fi
    sleep "$pause"
    pause=$((pause * 2 < 1800 ? pause * 2 : 1800))
  done
  fail "no attempts left after $attempts; $name was left as it is."
}

main "$@"
