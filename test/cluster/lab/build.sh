#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds what the cluster runs into the cache: Kubernetes and etcd (about ten
# minutes on two cores, once per version), CoreDNS (one), the images.

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

check_host() {
	[[ $(uname -s) == Linux && $(id -u) == 0 ]] || die "needs root on Linux"
	[[ $cgroup2 ]] || die "no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"
	local missing=() c
	for c in go containerd ctr runc ip nsenter unshare iptables nft conntrack openssl curl setsid; do
		command -v "$c" >/dev/null || missing+=("$c")
	done
	[[ -x /usr/lib/cni/bridge ]] || missing+=(/usr/lib/cni/bridge)
	((${#missing[@]} == 0)) || die "not found: ${missing[*]}. Try: apt-get install" \
		"containerd runc containernetworking-plugins iproute2 iptables nftables conntrack openssl curl"
}

# build OUT DIR PACKAGE [FLAG...]
build() {
	local out=$1 dir=$2 package=$3
	shift 3
	CGO_ENABLED=0 nice -n 5 go build -C "$dir" -trimpath -buildvcs=false "$@" -o "$out.new" "$package"
	mv "$out.new" "$out"
}

# build_kubernetes builds one program for all parts and links their names to it.
build_kubernetes() {
	local version out part ld='-s -w' p minor
	version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$here/../kubernetes/go.mod")
	out=$bin/kubernetes-$version
	minor=${version#v1.}
	# What the parts tell each other of their version.
	for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		ld+=" -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*}"
		ld+=" -X $p.gitCommit=0 -X $p.gitTreeState=clean -X $p.buildDate=2020-01-01T00:00:00Z"
	done
	if [[ ! -x $out ]]; then
		say "building Kubernetes $version, which takes a while"
		build "$out" "$here/../kubernetes" . -ldflags "$ld"
	fi
	for part in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
		ln -sf "$out" "$state/bin/$part"
	done
}

# build_coredns TREE
build_coredns() {
	local version out
	version=$(awk '$2 == "github.com/coredns/coredns" { print $3; exit }' "$here/../coredns/go.mod")
	out=$bin/coredns-$version
	if [[ ! -x $out ]]; then
		say "building CoreDNS $version"
		build "$out" "$here/../coredns" . -ldflags '-s -w'
	fi
	mkdir -p "$1"
	cp "$out" "$1/coredns"
}

# build_orb8 TREE puts into it an orb8 that can load NVIDIA's library, as that of the
# Dockerfile can, with the C library that it needs; without a C compiler one that can
# not.
build_orb8() {
	local lib
	rm -rf "$1"
	mkdir -p "$1"
	if [[ ${ORB8_CLUSTER_ORB8:-} ]] || ! command -v gcc >/dev/null; then
		cp "${ORB8_CLUSTER_ORB8:-$root/bin/orb8}" "$1/orb8"
		return
	fi
	CGO_ENABLED=1 CGO_CFLAGS="-g -O2 -Wno-deprecated-declarations" nice -n 5 go build -C "$root" -trimpath -buildvcs=false -tags netgo,osusergo \
		-ldflags "-s -w -X main.version=$("$root/bin/orb8" version -o json | sed -n 's/.*"version":"\([^"]*\)".*/\1/p')" -o "$1/orb8" ./cmd/orb8
	for lib in $(ldd "$1/orb8" | grep -o '/[^ ]*'); do
		mkdir -p "$1${lib%/*}"
		cp "$lib" "$1$lib"
	done
}

# build_trouble TREE completes an image whose programs have no other files beside them:
# with a static busybox, a folder that everybody may write to, and programs that make
# who starts them root.
build_trouble() {
	local name
	mkdir -p "$1/bin" "$1/lib" "$1/suid" "$1/tmp"
	chmod 1777 "$1/tmp"
	cp "$(command -v busybox)" "$1/bin/busybox"
	for name in sh sleep id ls cat true; do ln -sf busybox "$1/bin/$name"; done
	for name in trouble su; do install -m 4755 "$1/trouble" "$1/suid/$name"; done
	install -m 4755 "$1/bin/busybox" "$1/suid/sh"
	cp "$1/trouble" "$1/lib/ld-trouble.so.1"
}

# build_images makes the images that the nodes import. Their program is at
# /NAME, as in the Dockerfile.
build_images() {
	local name tree=$state/trees orb8
	orb8=$(awk '$1 == "image:" { gsub(/"/, "", $2); print $2; exit }' "$root/deploy/orb8-daemonset.yaml")
	build "$bin/mkimage" "$root" ./test/cluster/image
	for name in netpeer pause trouble orb8; do
		mkdir -p "$tree/$name"
		[[ $name == orb8 ]] || build "$tree/$name/$name" "$root" "./test/cluster/$name" -ldflags '-s -w'
	done
	build_trouble "$tree/trouble"
	build_orb8 "$tree/orb8"
	build_coredns "$tree/coredns"
	mkdir -p "$tree/orb8/etc/ssl/certs"
	cp /etc/ssl/certs/ca-certificates.crt "$tree/orb8/etc/ssl/certs/"
	"$bin/mkimage" -o "$images/orb8.tar" -ref "$orb8" -entrypoint /orb8 "$tree/orb8"
	"$bin/mkimage" -o "$images/coredns.tar" -ref orb8.test/coredns:1 -entrypoint /coredns "$tree/coredns"
	"$bin/mkimage" -o "$images/pause.tar" -ref orb8.test/pause:1 -entrypoint /pause "$tree/pause"
	"$bin/mkimage" -o "$images/netpeer.tar" -ref orb8.test/netpeer:1 -entrypoint /netpeer "$tree/netpeer"
	"$bin/mkimage" -o "$images/trouble.tar" -ref orb8.test/trouble:1 -entrypoint /trouble "$tree/trouble"
	ln -sf "$tree/netpeer/netpeer" "$state/bin/netpeer"
}

# build_kwok is only for the test of scale.
build_kwok() {
	local version=v0.8.0
	if [[ ! -x $bin/kwok-$version ]]; then
		(cd / && GOBIN=$state/gobin CGO_ENABLED=0 nice -n 5 go install -trimpath "sigs.k8s.io/kwok/cmd/kwok@$version")
		mv "$state/gobin/kwok" "$bin/kwok-$version"
	fi
	ln -sf "$bin/kwok-$version" "$state/bin/kwok"
	# How it lets nodes and pods come and go, from its own sources.
	local stages stage
	stages=$(cd / && go mod download -json "sigs.k8s.io/kwok@$version" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/kustomize/stage
	for stage in node/fast/node-initialize node/heartbeat-with-lease/node-heartbeat-with-lease pod/fast/pod-{ready,delete}; do
		echo ---
		cat "$stages/$stage.yaml"
	done >"$state/kwok-stages.yaml"
}

check_host
mkdir -p "$bin" "$images" "$state/bin"
build_kubernetes
build_images
[[ ! ${ORB8_TEST_SCALE:-} ]] || build_kwok
[[ ! ${ORB8_TEST_WORKLOADS:-} ]] || "$here/workloads.sh"
