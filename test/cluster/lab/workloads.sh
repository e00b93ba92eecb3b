#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the image of TestOrdinaryWorkloads in the cache, if it is not there: Debian with
# redis, nginx, Python and a JVM from this machine's package sources, and packages to
# install in a container. Remove $ORB8_CLUSTER_CACHE/workloads.tar to make it anew.

# shellcheck source=test/cluster/lab/lib.sh
. "$(dirname "$0")/lib.sh"

# What the workloads run, and what they install.
runs=(redis-server redis-tools nginx-light curl python3 default-jre-headless bsh cron)
installs=(less nano hello openssh-client logrotate)

# source_of_debian prints the address and the release that apt gets Debian from.
source_of_debian() {
	# shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' |
		awk '$3 == "Debian" && $4 == "main" { print $1, $2; exit }'
}

# inside ROOT COMMAND... runs in a mount namespace of its own, with ROOT for its root
# and with /proc, which a JVM's installation needs.
inside() {
	# shellcheck disable=SC2016 # of the inner shell
	DEBIAN_FRONTEND=noninteractive unshare -m --propagation private \
		sh -c 'mount -t proc proc "$1/proc"; mount --bind /dev "$1/dev"; exec chroot "$@"' sh "$@"
}

make_root() {
	local root=$1 mirror release
	read -r mirror release < <(source_of_debian)
	[[ $mirror ]] || die "apt-get indextargets names no source of Debian: try apt-get update"
	command -v debootstrap >/dev/null || die "not found: debootstrap. Try: apt-get install debootstrap"
	debootstrap --variant=minbase "$release" "$root" "$mirror"
	# Nothing is started while it is installed.
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
	chmod 755 "$root/usr/sbin/policy-rc.d"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	inside "$root" apt-get -q update
	inside "$root" apt-get -q install -y --no-install-recommends "${runs[@]}"
	inside "$root" apt-get -q clean
	inside "$root" apt-get -q install -y --no-install-recommends --download-only "${installs[@]}"
	mkdir "$root/packages"
	mv "$root"/var/cache/apt/archives/*.deb "$root/packages/"
	rm -rf "${root:?}"/dev/* "$root"/var/lib/apt/lists/* "$root/etc/resolv.conf"
}

[[ ! -e $cache/workloads.tar ]] || exit 0
say "making the image of ordinary workloads"
tree=$state/trees/workloads
mkdir -p "$tree" "$logs"
make_root "$tree" >"$logs/workloads.log" 2>&1 || die "could not make it: see $logs/workloads.log"
"$bin/mkimage" -o "$cache/workloads.tar.new" -ref orb8.test/workloads:1 -entrypoint /bin/sh "$tree"
mv "$cache/workloads.tar.new" "$cache/workloads.tar"
rm -rf --one-file-system "$tree"
