#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The whole cluster, two nodes:
#
#     lab.sh up [iptables|nftables]     build what is missing and start it
#     lab.sh proxy iptables|nftables    change the mode of kube-proxy
#     lab.sh down                       end all of it
#     lab.sh exec COMMAND...            with KUBECONFIG, and with kubectl in the PATH

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

nodes=(1 2)

up() {
	local i pids=()
	if [[ -e $run ]]; then
		! any_alive || die "there is a cluster in $run: $here/lab.sh down"
		say "test-cluster: removing what is in $run of a cluster whose processes have all gone"
		down
	fi
	mkdir -p "$run" "$logs"
	note up $$ # the cluster is taken before any daemon of it runs
	rm -f "$logs"/*
	"$here/build.sh"
	local began=$SECONDS
	"$here/pki.sh" "${nodes[@]}"
	"$here/control-plane.sh" start
	for i in "${nodes[@]}"; do
		"$here/node.sh" start "$i" "${1:-iptables}" &
		pids+=($!)
	done
	for i in "${pids[@]}"; do wait "$i"; done
	until_true 30 "the default service account" kubectl get serviceaccount default
	"$here/dns.sh"
	rm -f "$run/up.pid"
	say "two nodes up in $((SECONDS - began)) s"
}

down() {
	local i
	for i in "${nodes[@]}"; do "$here/node.sh" stop "$i"; done
	"$here/control-plane.sh" stop
	rm -rf --one-file-system "$run" "$state/trees" "$pki"
}

case ${1:-} in
up) up "${2:-}" ;;
down) down ;;
proxy) for i in "${nodes[@]}"; do "$here/node.sh" proxy "$i" "${2:?usage: lab.sh proxy MODE}"; done ;;
exec)
	shift
	exec "$@"
	;;
*) die "usage: lab.sh up|down|proxy|exec" ;;
esac
