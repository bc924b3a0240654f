# shellcheck shell=bash disable=SC2034  # read where this file is sourced
# Any other cluster, or none. To add a cluster, copy this file and set the names of its login nodes (CLUSTER_HOSTS,
# patterns separated by spaces), its paths and its partitions.

CLUSTER_HOSTS=''
: "${SCRATCH_DIR:=${SCRATCH:-$HOME}/cotformer}"
: "${COTFORMER_ENV:=venv}" # made by `make .venv/ready`
: "${CLUSTER_MODULES:=}" # modules to load first, e.g. apptainer
: "${MAIL_DOMAIN:=}"

: "${REMOTE_HOST:=}"
: "${REMOTE_REPO:=CoTFormer}"

# The partition to use for one that a package names: the same if it exists, else the default partition.
cluster_partition() {
    if [[ -n $(sinfo --noheader --partition="$1" 2>/dev/null) ]]; then
        printf '%s\n' "$1"
    else
        sinfo --noheader --format=%P 2>/dev/null | sed -n 's/\*$//p' | head -n 1 || true
    fi
}
