#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures what reading eight GPUs once a second costs the agent, as root and with a C
# compiler, against a library that stands in for NVIDIA's driver:
#
#     test/load/gpus.sh [SECONDS] [ROUNDS]        20 and 3 by default
#
# Arms take turns: off, control (off as well) and on. What the real driver's calls cost
# is not in it; the stand-in searches a text in each.

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
seconds=${1:-20} rounds=${2:-3}
PATH=$PATH:/usr/local/go/bin
[[ $EUID == 0 ]] || { echo "gpus: needs root: sudo $0" >&2; exit 1; }
command -v gcc >/dev/null || { echo "gpus: needs a C compiler: apt-get install gcc libc6-dev" >&2; exit 1; }

work=$(mktemp -d)
agent=
finish() {
	[[ ! $agent ]] || kill "$agent" 2>/dev/null || true
	rm -rf "$work"
}
trap finish EXIT

cd "$root"
headers=$(go list -m -f '{{.Dir}}' github.com/NVIDIA/go-nvml)/pkg/nvml
mkdir -p "$work/root/usr/lib64"
gcc -O2 -shared -fPIC -fvisibility=hidden -Wno-deprecated-declarations -o "$work/root/usr/lib64/libnvidia-ml.so.1" \
	-I "$headers" internal/accel/nvml/nvmltest/testdata/fake.c
CGO_ENABLED=1 CGO_CFLAGS='-g -O2 -Wno-deprecated-declarations' go build -trimpath -buildvcs=false -o "$work/orb8" ./cmd/orb8

export ORB8_FAKE_NVML=$work/state ORB8_FAKE_NVML_ONCE=1
{
	printf 'count 8\ndriver 570.124.06\n'
	for i in {0..7}; do
		printf "gpu$i.%s\n" "uuid GPU-0000000$i-0000-1111-2222-333344445555" 'name NVIDIA H100' "minor $i" "bus $((i + 16))" \
			'util 80' 'memutil 40' "mem.used $((20 << 30))" "mem.total $((80 << 30))" 'power 400000' 'powerlimit 700000' \
			'energy 123456' 'temp 50' 'smclock 1980' 'memclock 2600' 'field82 60' 'field186 400000' 'field197 5000' \
			'field198 6000' 'field138 7' 'field139 8' 'gpm 1' 'gpm2 75' 'gpm3 50' 'gpm5 40' 'gpm10 30' \
			"proc0 $$ $((10 << 30)) 40 0" "proc1 $PPID $((9 << 30)) 40 0"
	done
} >"$work/state"

# arm MODE prints milliseconds of CPU and KiB resident.
arm() {
	local began ended
	"$work/orb8" agent --listen= --metrics-listen= --tcp=off --packet=off --kubernetes=off --dcgm-url=off \
		--host-root="$work/root" --gpu="$1" --gpu-interval=1s --log-level=error 2>"$work/log" &
	agent=$!
	sleep 4 # to start, and to see the devices
	began=$(cpu "$agent")
	sleep "$seconds"
	ended=$(cpu "$agent")
	echo "$(((ended - began) / 1000000)) $(awk '$1 == "VmRSS:" { print $2 }' "/proc/$agent/status")"
	kill "$agent"
	wait "$agent" || { cat "$work/log" >&2; return 1; }
	agent=
}

# cpu PID is the time that all its threads have run, in nanoseconds.
cpu() { cat "/proc/$1"/task/*/schedstat | awk '{ sum += $1 } END { printf "%.0f\n", sum }'; }

declare -A ms kib
for ((r = 0; r < rounds; r++)); do
	for name in off control on; do
		mode=off
		[[ $name != on ]] || mode=on
		read -r a b < <(arm "$mode")
		ms[$name]+=" $a" kib[$name]+=" $b"
	done
done
printf '| arm | CPU, %% of one core, each round | resident, MiB |\n|---|---|---|\n'
for name in off control on; do
	printf '| %s |' "$name"
	for a in ${ms[$name]}; do awk -v ms="$a" -v s="$seconds" 'BEGIN { printf " %.3f", ms / s / 10 }'; done
	printf ' |'
	for b in ${kib[$name]}; do awk -v k="$b" 'BEGIN { printf " %.1f", k / 1024 }'; done
	printf ' |\n'
done
go test -run '^$' -bench "EightGPUs|StandIn" -benchtime 2s ./internal/accel/nvml | grep Benchmark
