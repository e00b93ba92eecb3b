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
#                          the first one, then TestServicesInOtherModes with the
#                          others, which it is told by ORB8_TEST_PROXIES
#   ORB8_CLUSTER_KEEP      1: leave the cluster running; test/cluster/lab/lab.sh
#                          exec kubectl ... uses it, lab.sh down ends it

set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
lab=$root/test/cluster/lab/lab.sh
state=${ORB8_CLUSTER_CACHE:-$HOME/.cache/orb8/cluster}/state
in_lab= # set where the tests run in a cluster that was made here
ready_within=90 # whatever the machine does; the time taken is printed

say() { printf '%s\n' "$*" >&2; }

# go_test runs the tests; all of them with a second look at those that fail, and with
# the skips that are expected.
go_test() {
	local flags=(-tags=cluster -count=1 -timeout=20m) gate=$state/bin/testgate
	if (($#)); then
		go test -C "$root" "${flags[@]}" ./test/cluster/ "$@"
		return
	fi
	mkdir -p "${gate%/*}"
	go build -C "$root" -buildvcs=false -o "$gate" ./tools/testgate
	(cd "$root" && "$gate" ${in_lab:+-skips=.ci/skips} "${flags[@]}" ./test/cluster/)
}

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

# start_cluster starts the lab and the agents in it.
start_cluster() { "$lab" up "$1" && install; }

# install applies the manifest as it is and waits for the agents.
install() {
	local began=$SECONDS
	"$lab" exec kubectl apply -f "$root/deploy/orb8-daemonset.yaml" >/dev/null || return 1
	"$lab" exec kubectl -n orb8-system rollout status daemonset/orb8-agent --timeout="${ready_within}s" >/dev/null || {
		say "test-cluster: the agents are not ready after $ready_within s"
		return 1
	}
	say "agents ready in $((SECONDS - began)) s"
}

test_in_lab() {
	local modes mode
	read -ra modes <<<"${ORB8_CLUSTER_PROXY:-iptables nftables}"
	mode=${modes[0]}
	# shellcheck source=test/cluster/lab/lib.sh
	. "${lab%/*}/lib.sh"
	[[ ! -e $run ]] || ! any_alive || die "there is a cluster in $run: $lab down"
	trap finish EXIT
	trap 'exit 130' INT TERM
	start_cluster "$mode" || {
		say "test-cluster: the cluster did not come up: once more, from the beginning"
		keep_logs
		rm -rf "$state/logs.first"
		cp -r "$state/logs" "$state/logs.first"
		"$lab" down
		start_cluster "$mode"
	}
	in_lab=1
	export ORB8_TEST_LAB=${lab%/*} ORB8_TEST_TROUBLE=${ORB8_TEST_TROUBLE:-orb8.test/trouble:1} ORB8_TEST_OUTSIDE4=$outside4 ORB8_TEST_OUTSIDE6=$outside6
	export ORB8_TEST_PROXIES="${modes[*]:1}"
	[[ ! ${ORB8_TEST_SCALE:-} ]] || ORB8_TEST_PROXIES=
	say "kube-proxy in mode $mode, later ${ORB8_TEST_PROXIES:-in no other}"
	go_test "$@"
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
	test_in_lab "$@"
fi
