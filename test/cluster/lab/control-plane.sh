#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The cluster's control plane, in the host's own namespaces:
#
#     control-plane.sh start|stop
#     control-plane.sh start-apiserver|stop-apiserver    the API server alone
#     control-plane.sh start-kwok      take nodes annotated kwok.x-k8s.io/node=fake
#                                      and their pods for real ones

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

etcd_url=http://127.0.0.1:22379

start_network() {
	local ip t
	ip link add "$bridge" type bridge
	ip addr add "$control4/24" dev "$bridge"
	ip addr add "$control6/64" dev "$bridge" nodad
	for ip in "$outside4/32" "$named4/32"; do ip addr add "$ip" dev "$bridge"; done
	for ip in "$outside6/128" "$named6/128"; do ip addr add "$ip" dev "$bridge" nodad; done
	ip link set "$bridge" up
	# Docker, for one, makes the host drop what it forwards.
	for t in iptables ip6tables; do
		"$t" -w -I FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>>"$logs/network.log" || true
	done
}

stop_network() {
	local t
	for t in iptables ip6tables; do
		"$t" -w -D FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null || true
	done
	ip link del "$bridge" 2>/dev/null || true
}

answers() {
	curl -sf --cacert "$pki/ca.crt" --cert "$pki/admin.crt" --key "$pki/admin.key" "https://$control4:6443/readyz"
}

# answers_or_died ends the wait at once where the server has ended.
answers_or_died() {
	alive apiserver || die "the API server ended: $(tail -3 "$logs/apiserver.log")"
	answers
}

start_apiserver() {
	start apiserver kube-apiserver --etcd-servers="$etcd_url" \
		--bind-address="$control4" --advertise-address="$control4" --secure-port=6443 \
		--service-cluster-ip-range="$services" --service-node-port-range=30000-32767 \
		--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
		--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
		--kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
		--kubelet-preferred-address-types=InternalIP \
		--service-account-issuer=https://kubernetes.default.svc \
		--service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key"
	until_true 60 "the API server" answers_or_died
}

# Two tests stop the API server for a while, which must not make the nodes NotReady:
# what becomes of nodes that are lost is not what is tested here.
start_controllers() {
	start controllers kube-controller-manager --kubeconfig="$pki/controllers.kubeconfig" \
		--authentication-kubeconfig="$pki/controllers.kubeconfig" --authorization-kubeconfig="$pki/controllers.kubeconfig" \
		--service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" --use-service-account-credentials \
		--cluster-cidr="$pods" --allocate-node-cidrs=false --leader-elect=false --bind-address=127.0.0.1 --secure-port=22257 \
		--node-monitor-grace-period=10m
	start scheduler kube-scheduler --kubeconfig="$pki/scheduler.kubeconfig" \
		--authentication-kubeconfig="$pki/scheduler.kubeconfig" --authorization-kubeconfig="$pki/scheduler.kubeconfig" \
		--leader-elect=false --bind-address=127.0.0.1 --secure-port=22259
}

case ${1:-} in
start)
	mkdir -p "$run/etcd"
	start_network
	start etcd etcd --name lab --data-dir "$run/etcd" --unsafe-no-fsync --log-level=warn \
		--listen-client-urls "$etcd_url" --advertise-client-urls "$etcd_url" \
		--listen-peer-urls http://127.0.0.1:22380 --initial-advertise-peer-urls http://127.0.0.1:22380 \
		--initial-cluster lab=http://127.0.0.1:22380
	start_apiserver
	start_controllers
	# The machines outside the cluster.
	start outside netpeer serve -listen "$outside4:7000,[$outside6]:7000,$named4:7000,[$named6]:7000"
	;;
start-kwok)
	start kwok kwok --kubeconfig="$pki/admin.kubeconfig" --config="$state/kwok-stages.yaml" \
		--cidr=10.128.0.0/9 --node-ip=10.127.0.1 \
		--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake --node-lease-duration-seconds=200
	;;
stop)
	for d in kwok outside scheduler controllers apiserver etcd; do stop "$d" KILL; done
	stop_network
	;;
start-apiserver) start_apiserver ;;
stop-apiserver) stop apiserver ;;
*) die "usage: control-plane.sh start|stop|start-apiserver|stop-apiserver|start-kwok" ;;
esac
