# shellcheck shell=bash disable=SC2034  # read where this file is sourced
# Iridis X, University of Southampton. Login nodes have network, compute nodes have none.
#
#   ecsstudents_l4   L4, 24 GB     24 h     guaranteed to ECS students
#   a100             A100, 80 GB   60 h     needs approval
#   scavenger_l4     L4, 24 GB     12 h     open to all, pre-emptible
#   scavenger_4a100  A100, 80 GB   12 h     open to all, pre-emptible
#   amd_student      CPUs only     12 h

CLUSTER_HOSTS='login*.iridis.soton.ac.uk loginx00* loginX00*'
: "${SCRATCH_DIR:=/scratch/ab3u21}" # the team's: data, environment and runs are shared
: "${COTFORMER_ENV:=conda}"
: "${CLUSTER_MODULES:=}" # modules to load first, e.g. apptainer
: "${MAIL_DOMAIN:=soton.ac.uk}"

# For iridis/sync.sh: its name for ssh, and the folder of this repository there.
: "${REMOTE_HOST:=iridis-x}"
: "${REMOTE_REPO:=CoTFormer}"

# The partition to use for one that a package names.
cluster_partition() { printf '%s\n' "$1"; }
