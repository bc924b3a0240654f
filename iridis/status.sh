#!/usr/bin/env bash
# The last run of every package, or of the named ones: bash iridis/status.sh [package ...]
set -euo pipefail
# shellcheck source=iridis/env.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
cd -- "$COTFORMER_REPO"
for python in "$CONDA_ENV_PREFIX/bin/python" "$VENV_DIR/bin/python" python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$python" -m iridis.status "$@"
    fi
done
printf 'error: no Python 3.11 on %s: make the environment first (iridis/README.md)\n' "$(hostname)" >&2
exit 1
