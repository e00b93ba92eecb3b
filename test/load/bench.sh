#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures what orb8 costs, as root, with bin/orb8 as it is:
#
#     test/load/bench.sh [--quick] [--only PART,...] [--write-docs]
#
#   --quick       less than 20 s, for a first look
#   --only        agent, dns, pass, compare or cost, separated by commas
#   --write-docs  write docs/benchmarks.md

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
# sudo may have another PATH.
PATH=$PATH:/usr/local/go/bin
export BENCH_ARGS=$*

args=()
for arg in "$@"; do
	[[ $arg == --write-docs ]] && arg=--write-docs=$root/docs/benchmarks.md
	args+=("$arg")
done

[[ $EUID == 0 ]] || { echo "bench: needs root: sudo $0" >&2; exit 1; }
[[ -x $root/bin/orb8 ]] || { echo "bench: bin/orb8 is missing: make build" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$root" && CGO_ENABLED=0 go build -buildvcs=false -o "$work/bench" ./test/load/bench)
"$work/bench" -orb8 "$root/bin/orb8" "${args[@]}"
