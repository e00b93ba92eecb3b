#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Tests orb8 in a real cluster with its own manifest:
#
#     test/cluster/run.sh [go-test-flag...]        for instance -run TestPods -v
#
# Without ORB8_TEST_KUBECONFIG it makes a cluster of two nodes on this machine
# (Linux, root), tests with both modes of kube-proxy, and removes it. With it, it
# tests that cluster, whose agents must run already; its nodes must have the
# image orb8.test/netpeer:1 (or ORB8_TEST_IMAGE) with test/cluster/netpeer as
# /netpeer.
#
# Environment:
#   ORB8_TEST_KUBECONFIG   kubeconfig of a cluster to test in
#   ORB8_TEST_NAMESPACE    namespace of its agents [orb8-system]
#   ORB8_TEST_IMAGE        image of the workloads [orb8.test/netpeer:1]
#   ORB8_TEST_TROUBLE      image like orb8.test/trouble:1, which lab/build.sh makes of
#                          test/cluster/trouble; without it the tests of rules are
#                          skipped outside the cluster that this makes
#   ORB8_TEST_OUTSIDE4     address of a machine outside that cluster where
#   ORB8_TEST_OUTSIDE6     `netpeer serve` runs; without it those tests are skipped
#   ORB8_TEST_ORB8         the command line to test [bin/orb8]
#   ORB8_TEST_SOURCE       how tests ask for flows: cli or grpc [cli]
#   ORB8_TEST_SCALE        fake so many pods and test what the agents make of them;
#                          with -run '^TestScale$' nothing else; kube-proxy runs in
#                          the first mode only
#   ORB8_TEST_WORKLOADS    file to write the alerts of ordinary workloads to, as a
#                          table; with -run '^TestOrdinaryWorkloads$' nothing else runs.
#                          Their image is made once, with debootstrap from this
#                          machine's package sources
#   ORB8_TEST_WORKLOADS_FOR  how long they run [5m]
#   ORB8_CLUSTER_CACHE     binaries, images and state [~/.cache/orb8/cluster]
#   ORB8_CLUSTER_PROXY     modes of kube-proxy [iptables nftables]: all tests with
#                          the first one, those of Services with the others
#   ORB8_CLUSTER_KEEP      1: leave the cluster running; test/cluster/lab/lab.sh
#                          exec kubectl ... uses it, lab.sh down ends it

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
lab=$root/test/cluster/lab/lab.sh
state=${ORB8_CLUSTER_CACHE:-$HOME/.cache/orb8/cluster}/state
ready_within=20

say() { printf '%s\n' "$*" >&2; }

go_test() { go test -C "$root" -tags cluster -count=1 -timeout 30m ./test/cluster/ "$@"; }

# keep_logs adds what the agents and the API server have to say to the daemons'
# logs.
keep_logs() {
	local p
	"$lab" exec kubectl get pods -A -o wide >"$state/logs/pods.txt" 2>&1 || true
	"$lab" exec kubectl get events -A --sort-by=.lastTimestamp >"$state/logs/events.txt" 2>&1 || true
	for p in $("$lab" exec kubectl -n orb8-system get pods -o name 2>/dev/null); do
		"$lab" exec kubectl -n orb8-system logs --all-containers "$p" >"$state/logs/${p##*/}.log" 2>&1 || true
		"$lab" exec kubectl -n orb8-system logs --all-containers --previous "$p" >"$state/logs/${p##*/}.previous.log" 2>/dev/null ||
			rm -f "$state/logs/${p##*/}.previous.log"
	done
}

finish() {
	local status=$?
	if ((status)); then
		keep_logs
		say "logs are in $state/logs"
	fi
	if [[ ${ORB8_CLUSTER_KEEP:-} == 1 ]]; then
		say "the cluster runs on: $lab exec kubectl get pods -A; $lab down"
	else
		"$lab" down
	fi
	exit "$status"
}

# install applies the manifest as it is and waits for the agents.
install() {
	local began=$SECONDS
	"$lab" exec kubectl apply -f "$root/deploy/orb8-daemonset.yaml" >/dev/null
	"$lab" exec kubectl -n orb8-system rollout status daemonset/orb8-agent --timeout="${ready_within}s" >/dev/null || {
		say "test-cluster: the agents are not ready after $ready_within s"
		return 1
	}
	say "agents ready in $((SECONDS - began)) s"
}

in_lab() {
	local modes mode rest
	read -ra modes <<<"${ORB8_CLUSTER_PROXY:-iptables nftables}"
	mode=${modes[0]} rest=("${modes[@]:1}")
	# shellcheck source=test/cluster/lab/lib.sh
	. "${lab%/*}/lib.sh"
	only_one
	trap finish EXIT
	trap 'exit 130' INT TERM
	"$lab" up "$mode"
	install
	export ORB8_TEST_LAB=${lab%/*} ORB8_TEST_TROUBLE=${ORB8_TEST_TROUBLE:-orb8.test/trouble:1} ORB8_TEST_OUTSIDE4=$outside4 ORB8_TEST_OUTSIDE6=$outside6
	say "kube-proxy in mode $mode"
	go_test "$@"
	[[ ! ${ORB8_TEST_SCALE:-} ]] || return 0
	for mode in "${rest[@]}"; do
		say "kube-proxy in mode $mode"
		"$lab" proxy "$mode"
		go_test "$@" -run '^TestServices$'
	done
}

export ORB8_TEST_ORB8=${ORB8_TEST_ORB8:-$root/bin/orb8}
[[ -x $ORB8_TEST_ORB8 ]] || {
	say "test-cluster: $ORB8_TEST_ORB8 is not there: make build"
	exit 1
}
if [[ ${ORB8_TEST_WORKLOADS:-} ]]; then
	ORB8_TEST_WORKLOADS=$(realpath -m "$ORB8_TEST_WORKLOADS")
	export ORB8_TEST_WORKLOADS
fi
if [[ ${ORB8_TEST_KUBECONFIG:-} ]]; then
	KUBECONFIG=$ORB8_TEST_KUBECONFIG go_test "$@"
else
	in_lab "$@"
fi
