#!/usr/bin/env bash
# Copies the code to every worker of a slice and installs what it needs.
#
#   launch/tpu_setup.sh --project=P --zone=Z --name=N
#
#   --project --zone --name   or ELT_TPU_PROJECT, ELT_TPU_ZONE, ELT_TPU_NAME
#   --revision=R   a git revision; default: what is checked out, and refused
#                  with uncommitted changes
#   --data=gs://BUCKET/DIRECTORY   copied to data/ of every worker, where the
#                  runs find it as data/...; what is there already stays
#   --dry-run      prints the commands and runs nothing
#
# The VMs need no access to git. They get Python 3.12, requirements.txt and
# jax[tpu], in releases no newer than the revision: set up again after
# a preemption, a run goes on with the same packages.

# shellcheck source=tpu_common.sh
source "$(dirname "$0")/tpu_common.sh"

main() {
  local date
  revision='' data=''
  parse 'revision data' '' "$@"
  [[ -z $data ]] || require_address data
  set_revision
  date=$(git -C "$root" show -s --format=%cI "$revision")
  files=${TMPDIR:-/tmp}
  if [[ -z $dry_run ]]; then
    files=$(mktemp -d)
    trap 'rm -rf "$files"' EXIT
  fi
  run git -C "$root" archive --output="$files/elt_jax.tar.gz" "$revision"
  # The first connection makes the ssh key and gives it to all workers, which
  # many connections at once cannot do.
  on_worker 0 true
  run gcloud compute tpus tpu-vm scp "$files/elt_jax.tar.gz" "$name:" \
    --project="$project" --zone="$zone" --worker=all
  on_worker all tar -xzf elt_jax.tar.gz --strip-components=1 \
    launch/tpu_worker.sh
  on_worker all bash tpu_worker.sh setup "$revision" "$date" ${data:+"$data"}
  report "$name is set up with revision ${revision:0:12}."
}

main "$@"
