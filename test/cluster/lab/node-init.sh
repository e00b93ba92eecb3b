#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs in a node's namespaces, which it holds: sets them up, starts containerd and
# the kubelet. node.sh starts it.

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

number=$1 name=n$1
dir=$run/$name

echo $$ >"$cgroup2/orb8lab-$name-sys/cgroup.procs"

# own_sys mounts the /sys of this network namespace, with the host's file systems
# below it.
own_sys() {
	local m
	mkdir -p "$dir/sys"
	mount -t sysfs sysfs "$dir/sys"
	for m in fs/cgroup fs/bpf kernel/tracing kernel/debug; do
		! mountpoint -q "/sys/$m" || mount --rbind "/sys/$m" "$dir/sys/$m"
	done
	mount --rbind "$dir/sys" /sys
}

# own DIR PATH has the node's own folder where the programs look for it.
own() {
	mkdir -p "$dir/$1" "$2"
	mount --bind "$dir/$1" "$2"
}

# shield PATH VALUE keeps the kubelet from changing a setting of the whole machine.
shield() {
	echo "$2" >"$dir/${1##*/}"
	mount --bind "$dir/${1##*/}" "$1"
}

own_sys
own kubelet /var/lib/kubelet
own containerd /var/lib/containerd
own run-containerd /run/containerd
own netns /run/netns
own cni /var/lib/cni
own cni-conf /etc/cni/net.d
own log-pods /var/log/pods
own log-containers /var/log/containers
shield /proc/sys/vm/overcommit_memory 1
shield /proc/sys/vm/panic_on_oom 0
shield /proc/sys/kernel/panic 10
shield /proc/sys/kernel/panic_on_oops 1
shield /proc/sys/kernel/keys/root_maxkeys 1000000
shield /proc/sys/kernel/keys/root_maxbytes 25000000
mount --make-rshared /
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
# So that a Service's rules see what pods on one bridge send each other.
sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 || true

cat >/etc/cni/net.d/10-orb8lab.conflist <<END
{"cniVersion": "0.4.0", "name": "orb8lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks",
      "ranges": [[{"subnet": "10.245.$number.0/24"}], [{"subnet": "fd00:10:245:$number::/64"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
END

# restrict_oom_score_adj: root of a container may lack CAP_SYS_RESOURCE.
cat >"$dir/containerd.toml" <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "orb8.test/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
END
start "$name-containerd" containerd -c "$dir/containerd.toml"
until_true 30 "containerd on $name" ctr version
all=("$images"/*.tar)
[[ ! ${ORB8_TEST_WORKLOADS:-} || $number != 1 ]] || all+=("$cache/workloads.tar")
for image in "${all[@]}"; do ctr -n k8s.io images import "$image"; done

echo "nameserver 127.0.0.1" >"$dir/resolv.conf"
cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/$name.crt
tlsPrivateKeyFile: $pki/$name.key
cgroupDriver: cgroupfs
cgroupRoot: /orb8lab-$name
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: $dir/resolv.conf
clusterDNS: [$dns]
clusterDomain: cluster.local
staticPodPath: $dir/static-pods
maxPods: 250
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
fileCheckFrequency: 1s
END
mkdir -p "$dir/static-pods"
start "$name-kubelet" kubelet --config="$dir/kubelet.yaml" --kubeconfig="$pki/$name.kubeconfig" \
	--hostname-override="$name" --node-ip="$(node4 "$number"),$(node6 "$number")"

# Hold the namespaces.
exec sleep infinity
