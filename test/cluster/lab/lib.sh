#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What the lab's scripts share: places, names, daemons. To be sourced.
# shellcheck disable=SC2034 # most of it is for those

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)

# Binaries and images outlive a cluster; state does not.
cache=${ORB8_CLUSTER_CACHE:-$HOME/.cache/orb8/cluster}
bin=$cache/bin images=$cache/images state=$cache/state
pki=$state/pki run=$state/run logs=$state/logs
export KUBECONFIG=$pki/admin.kubeconfig
export PATH=$state/bin:$PATH

# The first node is n1 with the address 10.251.0.11 and the pods 10.245.1.0/24.
# The control plane runs in the host's own network namespace.
bridge=orb8lab0
control4=10.251.0.1 control6=fd00:10:251::1
services=10.97.0.0/16,fd00:10:97::/112
pods=10.245.0.0/16,fd00:10:245::/56
node4() { echo "10.251.0.1$1"; }
node6() { echo "fd00:10:251::1$1"; }
# A machine that is neither node nor pod.
outside4=198.51.100.7 outside6=2001:db8:7::7
# Another one, which is api.example.test for the cluster's DNS server.
named4=198.51.100.8 named6=2001:db8:7::8
dns=10.97.0.10

say() { printf '%s\n' "$*" >&2; }
die() {
	say "test-cluster: $*"
	exit 1
}

# born PID prints when a process began, in ticks since the machine did. Nothing, and
# an error, of one that has ended.
born() {
	local stat fields
	stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
	read -ra fields <<<"${stat##*) }" # from the third on: a name may hold anything
	[[ ${fields[0]} != Z ]] && echo "${fields[19]}"
}

# note NAME PID keeps which process a daemon is in $run/NAME.pid. The pid alone may
# be somebody else's later, after the machine has started again for one.
note() { echo "$2 $(born "$2" || echo 0)" >"$run/$1.pid"; }

# pid_of NAME prints a daemon's pid, whether or not it still runs.
pid_of() {
	local pid
	[[ -e $run/$1.pid ]] && read -r pid _ <"$run/$1.pid" && echo "$pid"
}

# start NAME COMMAND... runs a daemon of its own session; who it is is in
# $run/NAME.pid and its output in $logs/NAME.log.
start() {
	local name=$1
	shift
	setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null &
	note "$name" $!
}

# alive NAME
alive() {
	local pid since now
	[[ -e $run/$1.pid ]] && read -r pid since <"$run/$1.pid" && now=$(born "$pid") &&
		[[ $now == "${since:-$now}" ]]
}

# any_alive tells whether something of the cluster in $run still runs.
any_alive() {
	local f
	for f in "$run"/*.pid; do
		f=${f##*/}
		! alive "${f%.pid}" || return 0
	done
	return 1
}

# stop NAME [SIGNAL] ends a daemon by its pid, with force after ten seconds.
stop() {
	local i
	if alive "$1"; then
		kill "-${2:-TERM}" "$(pid_of "$1")" 2>/dev/null || true
		for ((i = 0; i < 100; i++)); do
			alive "$1" || break
			sleep 0.1
		done
		! alive "$1" || kill -KILL "$(pid_of "$1")" 2>/dev/null || true
	fi
	rm -f "$run/$1.pid"
}

# until_true SECONDS WHAT COMMAND... repeats a command until it succeeds.
until_true() {
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < deadline)) || die "waited in vain for $what; see $logs"
		sleep 0.1
	done
}

# Where the cgroup2 hierarchy is; beside it on hybrid hosts those of v1.
cgroup2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
mapfile -t cgroup1 < <(awk '$3 == "cgroup" { print $2 }' /proc/self/mounts)
