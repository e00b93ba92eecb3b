#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs each fuzz target of the project:
#
#     tools/fuzz.sh 10s|1000x [package...]
#
# for a time or a number of inputs each. The tests of a package are linked once for all
# its targets.

set -euo pipefail

cd "$(dirname "$0")/.."
amount=${1:?usage: tools/fuzz.sh 10s|1000x [package...]}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=$(go env GOCACHE)/fuzz
# A number of inputs has no end of its own where one of them hangs; SIGQUIT shows the
# goroutines.
limit=()
[[ $amount != *x ]] || limit=(timeout --signal=QUIT --kill-after=10 300)
status=0

# fuzz FOLDER runs the targets of a package.
fuzz() {
	local bin=$work/${1//\//-}.test path t targets
	path=$(go list "./$1")
	mapfile -t targets < <(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$1"/*_test.go)
	go test -c -fuzz=. -o "$bin" "./$1" || return 1
	for t in "${targets[@]}"; do
		echo "$t in ./$1"
		(cd "$1" && "${limit[@]}" "$bin" -test.run='^$' -test.fuzz="^$t\$" \
			-test.fuzztime="$amount" -test.fuzzcachedir="$corpus/$path") || return 1
	done
}

folders=("$@")
((${#folders[@]})) || mapfile -t folders < <(grep -rl --include='*_test.go' '^func Fuzz' cmd internal tools | xargs -n1 dirname | sort -u)
for f in "${folders[@]}"; do fuzz "${f#./}" || status=1; done
exit $status
