#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compares what orb8 says of NVIDIA GPUs with nvidia-smi, on a machine that has one:
#
#     test/gpu/run.sh              build what can be built here, and run (root)
#     test/gpu/run.sh build        build into bin/gpu only, to be taken elsewhere
#
# Building needs Go and a C compiler; running needs the driver, nvidia-smi, and either
# those or a bin/gpu from elsewhere. ORB8_GPU_RECORDS names a folder for what was seen.

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
tools=$root/bin/gpu
PATH=$PATH:/usr/local/go/bin

build() {
	mkdir -p "$tools"
	cd "$root"
	export CGO_ENABLED=1 CGO_CFLAGS='-g -O2 -Wno-deprecated-declarations'
	go build -trimpath -buildvcs=false -tags netgo,osusergo -o "$tools/orb8" ./cmd/orb8
	go test -tags gpu -c -trimpath -o "$tools/gpu.test" ./test/gpu
	gcc -O2 -Wall -Wextra -o "$tools/load" test/gpu/cuda/load.c -ldl
}

can_build() { command -v go >/dev/null && command -v gcc >/dev/null; }

if [[ ${1:-} == build ]]; then
	build
	exit
fi
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
	echo 'test-gpu: no NVIDIA GPU here (nvidia-smi finds none): nothing was tested'
	exit 0
fi
if can_build; then
	build
elif [[ ! -x $tools/gpu.test ]]; then
	echo "test-gpu: neither Go and a C compiler here, nor $tools: build it elsewhere with $0 build" >&2
	exit 1
fi
nvidia-smi -L
[[ ! ${ORB8_GPU_RECORDS:-} ]] || mkdir -p "$ORB8_GPU_RECORDS"
export ORB8_GPU_TOOLS=$tools
"$tools/gpu.test" -test.v -test.count=1 "$@"
