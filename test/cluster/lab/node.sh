#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# One node in a network and mount namespace of its own:
#
#     node.sh start|stop NUMBER
#     node.sh proxy NUMBER MODE           restart kube-proxy in that mode
#     node.sh next-ip NUMBER ADDRESS      the next pod gets that IPv4 address
#     node.sh exec NUMBER COMMAND...      in the node's namespaces

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

number=${2:?usage: node.sh start|stop|proxy|next-ip|exec NUMBER ...}
name=n$number
netns=orb8lab-$name
# A kubelet removes the pods' cgroups below its root that it does not know, so
# each has its own root. The daemons are in another one.
podgroup=/$netns sysgroup=/$netns-sys
dir=$run/$name

# inside COMMAND... runs in the node's namespaces.
inside() { nsenter -t "$(pid_of "$name-init")" -m -n "$@"; }

start_network() {
	local other
	ip netns add "$netns"
	ip link add "orb8lab-$name" type veth peer name eth0 netns "$netns"
	ip link set "orb8lab-$name" master "$bridge" up
	ip -n "$netns" link set lo up
	ip -n "$netns" addr add "$(node4 "$number")/24" dev eth0
	ip -n "$netns" addr add "$(node6 "$number")/64" dev eth0 nodad
	ip -n "$netns" link set eth0 up
	ip -n "$netns" route add default via "$control4"
	ip -n "$netns" -6 route add default via "$control6"
	ip route replace "10.245.$number.0/24" via "$(node4 "$number")" dev "$bridge"
	ip -6 route replace "fd00:10:245:$number::/64" via "$(node6 "$number")" dev "$bridge"
	for other in 1 2 3 4; do
		((other != number)) || continue
		ip -n "$netns" route add "10.245.$other.0/24" via "$(node4 "$other")"
		ip -n "$netns" -6 route add "fd00:10:245:$other::/64" via "$(node6 "$other")"
	done
}

stop_network() {
	ip netns del "$netns" 2>/dev/null || true
	ip link del "orb8lab-$name" 2>/dev/null || true
	ip route del "10.245.$number.0/24" 2>/dev/null || true
	ip -6 route del "fd00:10:245:$number::/64" 2>/dev/null || true
}

make_cgroups() {
	local c f controllers
	mkdir -p "$cgroup2$podgroup" "$cgroup2$sysgroup"
	read -ra controllers <"$cgroup2/cgroup.controllers" || true
	for c in "${controllers[@]}"; do
		echo "+$c" >"$cgroup2/cgroup.subtree_control" || true
		echo "+$c" >"$cgroup2$podgroup/cgroup.subtree_control" || true
	done 2>>"$logs/$name-init.log"
	for c in "${cgroup1[@]}"; do
		mkdir -p "$c$podgroup"
		for f in cpuset.cpus cpuset.mems; do
			[[ ! -e $c/$f ]] || cat "$c/$f" >"$c$podgroup/$f"
		done
	done
}

# end_all ends every container, then every daemon and shim of this node, and
# nothing else.
end_all() {
	local g i
	for g in "$podgroup" "$sysgroup"; do
		[[ ! -e $cgroup2$g/cgroup.kill ]] || echo 1 >"$cgroup2$g/cgroup.kill"
		for ((i = 0; i < 50; i++)); do
			grep -qs 'populated 1' "$cgroup2$g/cgroup.events" || break
			sleep 0.1
		done
	done
}

remove_cgroups() {
	local c
	for c in "$cgroup2" "${cgroup1[@]}"; do
		find "$c$podgroup" "$c$sysgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
	done
}

start_proxy() {
	cat >"$dir/proxy.yaml" <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: $1
		clusterCIDR: $pods
		hostnameOverride: $name
		clientConnection: {kubeconfig: $pki/proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	END
	stop "$name-proxy"
	# The new mode removes what the other one has made.
	start "$name-proxy" nsenter -t "$(pid_of "$name-init")" -m -n \
		sh -c "echo \$\$ >$cgroup2$sysgroup/cgroup.procs; exec kube-proxy --config=$dir/proxy.yaml"
	until_true 30 "kube-proxy on $name" inside curl -sf http://127.0.0.1:10256/healthz
}

registered() {
	alive "$name-init" || die "$name ended: $(tail -3 "$logs/$name-init.log")"
	kubectl get node "$name"
}

case $1 in
start)
	mkdir -p "$dir"
	start_network
	make_cgroups
	start "$name-init" nsenter --net="/run/netns/$netns" unshare -m --propagation private "$here/node-init.sh" "$number"
	until_true 60 "$name to register" registered
	start_proxy "${3:-iptables}"
	kubectl wait --for=condition=Ready "node/$name" --timeout=60s >/dev/null || die "$name is not ready; see $logs"
	kubectl label node "$name" "topology.kubernetes.io/zone=zone-$number" >/dev/null
	kubectl patch node "$name" -p "{\"spec\":{\"podCIDR\":\"10.245.$number.0/24\",
		\"podCIDRs\":[\"10.245.$number.0/24\",\"fd00:10:245:$number::/64\"]}}" >/dev/null
	;;
stop)
	end_all
	stop_network
	rm -f "$run/$name"-*.pid
	sleep 0.3 # mounts go with the last process
	rm -rf --one-file-system "$dir"
	remove_cgroups
	;;
proxy) start_proxy "${3:?usage: node.sh proxy NUMBER MODE}" ;;
next-ip)
	ip=${3:?usage: node.sh next-ip NUMBER ADDRESS} taken=$dir/cni/networks/orb8lab
	# Its last pod's network may still be there when the pod itself has gone.
	until_true 30 "$ip to be free" test ! -e "$taken/$ip"
	echo -n "${ip%.*}.$((${ip##*.} - 1))" >"$taken/last_reserved_ip.0"
	inside ip neigh flush dev cni0
	;;
exec)
	shift 2
	inside "$@"
	;;
*) die "usage: node.sh start|stop|proxy|next-ip|exec NUMBER ..." ;;
esac
