# shellcheck shell=bash
# Paths, caches and the Python environment of jobs.
#
# Every job sources this file; in a shell:  source ~/CoTFormer/iridis/env.sh
# A value is taken from, in this order: iridis/env.local.sh (yours; ignored by git), the environment,
# iridis/clusters/<name>.sh, and the defaults below. `DATA_DIR=/data bash iridis/lncot-train/job.sh` works too.

COTFORMER_REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export COTFORMER_REPO

# The names of clusters are those of the files in iridis/clusters.
cotformer_clusters() {
    local file
    for file in "$COTFORMER_REPO"/iridis/clusters/*.sh; do basename "$file" .sh; done
}

# The patterns of hosts in a cluster's file.
cotformer_hosts_of() (
    CLUSTER_HOSTS=''
    # shellcheck source=/dev/null
    . "$COTFORMER_REPO/iridis/clusters/$1.sh"
    printf '%s' "$CLUSTER_HOSTS"
)

# The cluster of this machine, by its host name or, on compute nodes, by the host that submitted the job.
cotformer_detect_cluster() {
    local here name pattern patterns
    here=$(hostname -f 2>/dev/null || hostname)
    for name in $(cotformer_clusters); do
        read -ra patterns <<<"$(cotformer_hosts_of "$name")"
        for pattern in "${patterns[@]}"; do
            # shellcheck disable=SC2053  # it is a pattern
            if [[ $here == $pattern || ${SLURM_SUBMIT_HOST:-} == $pattern ]]; then
                printf '%s\n' "$name"
                return
            fi
        done
    done
    printf 'generic\n'
}

if [[ -f $COTFORMER_REPO/iridis/env.local.sh ]]; then
    # shellcheck source=/dev/null
    . "$COTFORMER_REPO/iridis/env.local.sh"
fi
export CLUSTER=${CLUSTER:-$(cotformer_detect_cluster)}
if [[ -f $COTFORMER_REPO/iridis/clusters/$CLUSTER.sh ]]; then
    # shellcheck source=/dev/null
    . "$COTFORMER_REPO/iridis/clusters/$CLUSTER.sh"
else
    printf 'error: CLUSTER=%s: there is no iridis/clusters/%s.sh; choose from %s\n' \
        "$CLUSTER" "$CLUSTER" "$(cotformer_clusters | paste -sd' ')" >&2
    unset CLUSTER
    return 2
fi

# Folders. SCRATCH_DIR is set by the cluster's file; home folders are too small.
export SCRATCH_DIR
export DATA_DIR=${DATA_DIR:-$SCRATCH_DIR/datasets}
export EXPS_DIR=${EXPS_DIR:-$SCRATCH_DIR/exps}
export JOB_OUTPUTS_DIR=${JOB_OUTPUTS_DIR:-$SCRATCH_DIR/job-outputs}
export CACHE_DIR=${CACHE_DIR:-$SCRATCH_DIR/.cache}
export TIKTOKEN_CACHE_DIR=${TIKTOKEN_CACHE_DIR:-$CACHE_DIR/tiktoken}
export HF_HOME=${HF_HOME:-$CACHE_DIR/huggingface}
export WANDB_DIR=${WANDB_DIR:-$CACHE_DIR}
export WANDB_CACHE_DIR=${WANDB_CACHE_DIR:-$CACHE_DIR/wandb-cache}
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$CACHE_DIR/pip}
# Caches that users cannot share, as files belong to the user who wrote them.
export MPLCONFIGDIR=${MPLCONFIGDIR:-$CACHE_DIR/$(id -un)/matplotlib}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$CACHE_DIR/$(id -un)/triton}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$CACHE_DIR/$(id -un)/inductor}
export APPTAINER_CACHEDIR=${APPTAINER_CACHEDIR:-$CACHE_DIR/$(id -un)/apptainer}

# The Python environment: conda, venv, or apptainer (an image built from iridis/rcotformer.def).
export COTFORMER_ENV
export CONDA_ENV_PREFIX=${CONDA_ENV_PREFIX:-$SCRATCH_DIR/cotformer-env}
export VENV_DIR=${VENV_DIR:-$COTFORMER_REPO/.venv}
export APPTAINER_IMAGE=${APPTAINER_IMAGE:-$COTFORMER_REPO/iridis/rcotformer.sif}

# Slurm sends mail to this address when a job ends or fails; NOTIFY_EMAIL= (empty) for no mail.
export NOTIFY_EMAIL=${NOTIFY_EMAIL-${MAIL_DOMAIN:+$(id -un)@$MAIL_DOMAIN}}
