#!/usr/bin/env bash
# Between your machine and a cluster: bash iridis/sync.sh push|pull [flags of rsync, e.g. --dry-run]
#
#   push   this repository to the cluster, without data, environments, images, runs and logs; deletes nothing there
#   pull   what jobs have left: their run_N folders, job-outputs/ and, without checkpoints, the runs in exps/
#
# CLUSTER=<name> says which (iridis-x). REMOTE_HOST is what ssh calls it, REMOTE_REPO where the repository lies.
set -euo pipefail

CLUSTER=${CLUSTER:-iridis-x}
# shellcheck source=iridis/env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
cd -- "$COTFORMER_REPO"
what=${1:-}
case $what in
push | pull) shift ;;
-h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0" && exit ;;
*) printf 'error: %s: say push or pull\n' "${what:-nothing was asked for}" >&2 && exit 2 ;;
esac
command -v rsync >/dev/null || { printf 'error: there is no rsync on this machine: install it\n' >&2 && exit 1; }
if [[ -z $REMOTE_HOST ]]; then
    printf 'error: cluster %s has no REMOTE_HOST; set it in iridis/clusters/%s.sh\n' "$CLUSTER" "$CLUSTER" >&2
    exit 2
fi

if [[ $what == push ]]; then
    rsync -avz --exclude='slurm_*' --exclude='run_*/' --exclude='*.sif' --exclude=env.local.sh --exclude=.venv \
        --exclude=__pycache__ --exclude='.*_cache' --exclude=/data/datasets --exclude=/exps --exclude=/wandb \
        --exclude=/demo --exclude=/job-outputs "$@" ./ "$REMOTE_HOST:$REMOTE_REPO/"
else
    rsync -avz --include='*/' --include='run_*/**' --exclude='*' --prune-empty-dirs "$@" \
        "$REMOTE_HOST:$REMOTE_REPO/iridis/" iridis/
    rsync -avz "$@" "$REMOTE_HOST:$JOB_OUTPUTS_DIR/" job-outputs/
    rsync -avz --exclude='*.pt' --exclude='*.dcp' --exclude='*.tmp' "$@" "$REMOTE_HOST:$EXPS_DIR/" exps/
fi
