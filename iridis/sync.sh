#!/usr/bin/env bash
# Copy between your machine and a cluster: bash iridis/sync.sh push|pull [flags of rsync, e.g. --dry-run]
#
#   push   copies this repository to the cluster, without data, environments, images, runs and logs; deletes nothing
#   pull   copies results of jobs back: run_N folders, job-outputs/ and, without checkpoints, the runs in exps/
#
# REMOTE_CLUSTER=<name> chooses the cluster (iridis-x). REMOTE_HOST is its name for ssh, REMOTE_REPO the folder of the
# repository there, REMOTE_SCRATCH that of data and runs; defaults are in iridis/clusters/<name>.sh.
set -euo pipefail

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd -- "$HERE/.."
what=${1:-}
case $what in
push | pull) shift ;;
-h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0" && exit ;;
*) printf 'error: %s: give push or pull\n' "${what:-no command}" >&2 && exit 2 ;;
esac
command -v rsync >/dev/null || { printf 'error: there is no rsync on this machine: install it\n' >&2 && exit 1; }
cluster=${REMOTE_CLUSTER:-iridis-x}
if [[ ! -f $HERE/clusters/$cluster.sh ]]; then
    printf 'error: REMOTE_CLUSTER=%s: there is no iridis/clusters/%s.sh\n' "$cluster" "$cluster" >&2
    exit 2
fi
SCRATCH_DIR=${REMOTE_SCRATCH:-} # on the cluster
# shellcheck source=/dev/null
. "$HERE/clusters/$cluster.sh"
if [[ -z $REMOTE_HOST ]]; then
    printf 'error: cluster %s has no REMOTE_HOST; set it in iridis/clusters/%s.sh\n' "$cluster" "$cluster" >&2
    exit 2
fi

if [[ $what == push ]]; then
    rsync -avz --exclude='slurm_*' --exclude='run_[0-9]*/' --exclude='*.sif' --exclude=env.local.sh --exclude=.venv \
        --exclude=__pycache__ --exclude='.*_cache' --exclude=/data/datasets --exclude=/exps --exclude=/wandb \
        --exclude=/demo --exclude=/job-outputs "$@" ./ "$REMOTE_HOST:$REMOTE_REPO/"
else
    rsync -avz --include='*/' --include='run_[0-9]*/**' --exclude='*' --prune-empty-dirs "$@" \
        "$REMOTE_HOST:$REMOTE_REPO/iridis/" iridis/
    rsync -avz --ignore-missing-args "$@" "$REMOTE_HOST:$SCRATCH_DIR/job-outputs/" job-outputs/
    rsync -avz --ignore-missing-args --exclude='*.pt' --exclude='*.dcp' --exclude='*.tmp' "$@" \
        "$REMOTE_HOST:$SCRATCH_DIR/exps/" exps/
fi
