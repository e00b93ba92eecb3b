#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fetches one of Debian's cloud kernels and prints the folder that holds it:
#
#     test/kernels/fetch.sh RELEASE        # 5.10, 6.1 or 6.12
#     test/kernels/fetch.sh --raise        # pin the newest of each in versions
#
# The file versions beside this one pins the package of each release. If a mirror no
# longer has that version, the next newer one is taken, and that is said.
#
# The folder's name is the exact version of the package; in it are vmlinuz and
# lib/modules, uncompressed, with their modules.dep. apt fetches from the mirror
# that this machine is configured with and checks all signatures, with sources
# and state of its own under the cache: nothing is installed.
#
# Environment: ORB8_KERNEL_CACHE, ORB8_KERNEL_OFFLINE and ORB8_DEBIAN_MIRROR, see
# run.sh.

set -euo pipefail

release=${1:?usage: fetch.sh RELEASE, or fetch.sh --raise}
pins=$(cd "$(dirname "$0")" && pwd)/versions
suites=(bullseye bookworm) # with their -security: 5.10, and 6.1 and 6.12
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=${ORB8_KERNEL_CACHE:-$HOME/.cache/orb8/kernels}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf '%s\n' "$*" >&2; }
die() {
	say "test-kernels: $*"
	exit 1
}

# private COMMAND ARGS runs a tool of apt on our own sources and state. How to
# reach the mirror (proxies, transports) still comes from the machine's apt.conf.
private() {
	"$1" -q \
		-o Dir::State="$cache/apt" -o Dir::State::Lists="$cache/apt/lists" -o Dir::State::status=/dev/null \
		-o Dir::Cache="$cache/apt" -o Dir::Cache::archives="$cache/apt/archives" \
		-o Dir::Etc::SourceList="$cache/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User="$(id -un)" \
		-o Acquire::Languages=none -o Acquire::Retries=3 \
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "${@:2}"
}

# logged COMMAND ARGS shows the output only if the command fails.
logged() {
	"$@" >"$work/log" 2>&1 && return
	cat "$work/log" >&2
	return 1
}

# mirror LABEL prints the URL of the machine's repository with that label.
mirror() {
	# shellcheck disable=SC2016 # apt's own variable
	apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Label: $1" | sed -n 1p
}

write_sources() {
	local main security s
	main=${ORB8_DEBIAN_MIRROR:-$(mirror Debian)}
	[[ -n $main ]] || die "apt has no Debian repository: run apt-get update, or set ORB8_DEBIAN_MIRROR"
	security=${ORB8_DEBIAN_MIRROR:+${ORB8_DEBIAN_MIRROR%/}-security}
	security=${security:-$(mirror Debian-Security)}
	security=${security:-${main%/}-security}
	[[ -r $keyring ]] || die "no $keyring: apt-get install debian-archive-keyring"
	mkdir -p "$cache"/apt/{lists,archives}/partial
	for s in "${suites[@]}"; do
		echo "deb [signed-by=$keyring] $main $s main"
		echo "deb [signed-by=$keyring] $security $s-security main"
	done >"$work/sources.list"
	if ! cmp -s "$work/sources.list" "$cache/apt/sources.list"; then
		cp "$work/sources.list" "$cache/apt/sources.list"
		rm -f "$cache/apt/updated"
	fi
}

# update_indexes asks the mirror at most once in 12 hours.
update_indexes() {
	local stamp=$cache/apt/updated
	[[ -n $(find "$stamp" -mmin -720 2>/dev/null) ]] && return
	say "reading the package indexes of ${suites[*]}"
	logged private apt-get -o APT::Update::Error-Mode=any update || die "read the package indexes"
	touch "$stamp"
}

# offered prints the names and versions of a release's cloud kernels, oldest first.
offered() {
	local names name version _ lines=() i
	mapfile -t names < <(private apt-cache pkgnames "linux-image-$1." |
		grep -E "^linux-image-${1//./\\.}\.[0-9][^_]*-cloud-amd64$")
	((${#names[@]})) || return 0
	while read -r name _ version _; do
		for ((i = ${#lines[@]}; i > 0; i--)); do
			dpkg --compare-versions "${lines[i - 1]#* }" gt "$version" || break
			lines[i]=${lines[i - 1]}
		done
		lines[i]="$name $version"
	done < <(private apt-cache madison "${names[@]}")
	printf '%s\n' "${lines[@]}"
}

# pinned RELEASE prints the version that the file names.
pinned() { awk -v r="$1" '$1 == r { print $3 }' "$pins"; }

# choose RELEASE prints name and version of the kernel to take: the pinned one, or else
# the next newer one.
choose() {
	local want name version
	want=$(pinned "$1")
	while read -r name version; do
		[[ $version != "$want" ]] || {
			echo "$name $version"
			return
		}
	done < <(offered "$1")
	while read -r name version; do
		dpkg --compare-versions "$version" gt "$want" || continue
		say "the mirror no longer has Linux $want: taking $version; test/kernels/fetch.sh --raise pins the newest"
		echo "$name $version"
		return
	done < <(offered "$1")
	return 1
}

# raise pins the newest of each release.
raise() {
	local r last releases
	write_sources
	update_indexes
	mapfile -t releases < <(awk '!/^#/ { print $1 }' "$pins")
	for r in "${releases[@]}"; do
		last=$(offered "$r" | tail -n 1)
		[[ $last ]] || die "the mirror has no cloud kernel $r"
		sed -i "s/^$r .*/$r $last/" "$pins"
	done
	cat "$pins"
}

# unpack DEB DIR makes DIR complete in one step, by renaming.
unpack() {
	local tree=$work/tree out=$work/out
	dpkg-deb -x "$1" "$tree"
	mkdir "$out"
	mv "$tree"/boot/vmlinuz-* "$out/vmlinuz"
	mv "$tree/lib" "$out/lib"
	find "$out/lib/modules" -name '*.ko.xz' -exec xz -d {} +
	busybox depmod -b "$out" "$(ls "$out/lib/modules")"
	# Only the newest is kept; mv across file systems is not one step.
	rm -rf "${cache:?}/$release"
	mkdir -p "$cache/$release"
	mv "$out" "$cache/$release/.new"
	mv "$cache/$release/.new" "$2"
}

# find_kernel sets main's name, version and dir.
find_kernel() {
	update_indexes
	read -r name version < <(choose "$release") || die "the mirror has no cloud kernel $release"
	dir=$cache/$release/$version
	[[ -d $dir ]] || say "fetching $name $version"
}

main() {
	local name version dir deb
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	if [[ $release == --raise ]]; then
		raise
		return
	fi
	[[ $(pinned "$release") ]] || die "no kernel $release in $pins"
	if [[ ${ORB8_KERNEL_OFFLINE:-} == 1 ]]; then
		dir=$(find "$cache/$release" -mindepth 1 -maxdepth 1 -name '[0-9]*' 2>/dev/null)
		[[ -n $dir ]] || die "no kernel $release in $cache"
		echo "$dir"
		return
	fi
	dir=$cache/$release/$(pinned "$release")
	if [[ -d $dir ]]; then
		echo "$dir"
		return
	fi
	write_sources
	find_kernel
	if [[ ! -d $dir ]]; then
		cd "$work"
		logged private apt-get download "$name=$version" || {
			# The mirror may have moved on since its indexes were read.
			sleep 5
			rm -f "$cache/apt/updated"
			find_kernel
			logged private apt-get download "$name=$version" || die "download $name"
		}
		deb=("$work"/*.deb)
		unpack "${deb[0]}" "$dir"
	fi
	echo "$dir"
}

main
