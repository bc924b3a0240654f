#!/usr/bin/env bash
# Submit a package: bash iridis/submit.sh <package> [--chain N | --requeue] [options and flags of its job.sh]
#
#   --chain N   N jobs, each of which starts when the one before has ended
#   --requeue   one job that requeues itself before its time limit until the run is complete
set -euo pipefail

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
packages() { (cd -- "$HERE" && printf '%s\n' */job.sh) | sed 's,/job.sh,,' | paste -sd' '; }

case ${1:-} in
"" | -h | --help)
    sed -n '2,5s/^# \{0,1\}//p' "$0"
    printf 'packages: %s\n' "$(packages)"
    [[ $# != 0 ]] || exit 2
    exit 0
    ;;
esac
package=${1#iridis/}
package=${package%/}
if [[ ! -f $HERE/$package/job.sh ]]; then
    printf 'error: there is no package %s; choose from %s\n' "$package" "$(packages)" >&2
    exit 2
fi
shift
exec bash "$HERE/$package/job.sh" "$@"
