#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the probe tests on old and new Linux kernels under QEMU, without KVM:
#
#     test/kernels/run.sh [--write-docs] [release...]
#
# Without a release: on all of them. It fails if a test fails, or if the result
# differs from the one in docs/kernels.md, which --write-docs writes.
#
# Environment:
#   ORB8_KERNEL_CACHE     kernels and logs [~/.cache/orb8/kernels]
#   ORB8_KERNEL_OFFLINE   1: use the kernels in the cache, ask no mirror
#   ORB8_KERNEL_TIMEOUT   seconds for one kernel [900]
#   ORB8_KERNEL_SILENCE   seconds without a word from a test or the kernel, after
#                         which the emulated machine is taken to hang [330]: more
#                         than ORB8_TEST_TIMEOUT, as a test that hangs tells where
#   ORB8_TEST_TIMEOUT     the -test.timeout of one package [5m]
#   ORB8_TEST_PACKAGES    packages to test instead of all, and
#   ORB8_TEST_RUN         their -test.run: with either of them the result is not
#                         compared with docs/kernels.md
#   ORB8_DEBIAN_MIRROR    URL of a Debian mirror, for machines whose apt has
#                         none; its security repository is the same + -security

set -euo pipefail

all_releases=(5.10 6.1 6.12)
# Every package here that has tests is run, in this order.
packages=(./test/kernels/smoke ./internal/probe/...)
[[ -z ${ORB8_TEST_PACKAGES:-} ]] || read -ra packages <<<"$ORB8_TEST_PACKAGES"
tools=(busybox ip nft ping)
# What tests may use; what these need comes along. The rest stays out, so that
# the initramfs is quick to unpack.
modules=(
	veth dummy tun inet_diag tcp_diag udp_diag
	nf_tables nft_counter nft_numgen nft_limit nft_ct nft_reject_inet
	nft_quota nft_chain_nat nft_nat nft_masq nft_redir
)
memory_mib=2048

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/test/kernels
cache=${ORB8_KERNEL_CACHE:-$HOME/.cache/orb8/kernels}
work=
qemu=

say() { printf '%s\n' "$*" >&2; }
die() {
	say "test-kernels: $*"
	exit 1
}

stop_qemu() {
	[[ -n $qemu ]] || return 0
	kill "$qemu" 2>/dev/null || true
	wait "$qemu" 2>/dev/null || true
	qemu=
}

cleanup() {
	stop_qemu
	[[ -z $work ]] || rm -rf "$work"
}

check_host() {
	[[ $(uname -sm) == "Linux x86_64" ]] || die "needs Linux on amd64, this is $(uname -sm)"
	local missing=() c
	for c in go qemu-system-x86_64 cpio xz flock ldd apt-get dpkg-deb "${tools[@]}"; do
		command -v "$c" >/dev/null || missing+=("$c")
	done
	((${#missing[@]} == 0)) || die "not found: ${missing[*]}. Try:" \
		"apt-get install qemu-system-x86 cpio xz-utils busybox-static iproute2 nftables iputils-ping"
}

# --- initramfs ---------------------------------------------------------------

pack() { (cd "$1" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) >"$2"; }

# install_tool TREE NAME copies a program with the libraries that it needs.
install_tool() {
	local bin lib
	bin=$(readlink -f "$(command -v "$2")")
	cp "$bin" "$1/bin/$2"
	while read -r lib; do
		mkdir -p "$1$(dirname "$lib")"
		[[ -e $1$lib ]] || cp -L "$lib" "$1$lib"
	done < <(ldd "$bin" 2>/dev/null | grep -oE '/[^ ]+')
}

# build_tests TREE compiles the tests and lists them for init.
build_tests() {
	local list dir out
	list=$(cd "$root" && go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "${packages[@]}")
	[[ -n $list ]] || die "no tests in ${packages[*]}"
	for dir in $list; do
		dir=${dir#"$root"/}
		out=$1/src/$dir
		mkdir -p "$out"
		(cd "$root" && CGO_ENABLED=0 go test -c -ldflags='-s -w' -o "$out/pkg.test" "./$dir")
		[[ ! -d $root/$dir/testdata ]] || cp -r "$root/$dir/testdata" "$out/"
		echo "$dir" >>"$1/src/packages"
	done
	printf "timeout='%s'\nrun='%s'\n" "${ORB8_TEST_TIMEOUT:-5m}" "${ORB8_TEST_RUN:-}" >"$1/src/options"
}

# pack_base CPIO packs all that the kernels share: tools, tests and init.
pack_base() {
	local tree=$work/base t
	mkdir -p "$tree"/{bin,sbin,etc,root,proc,sys,dev,tmp,run,src,var}
	ln -s /run "$tree/var/run"
	for t in "${tools[@]}"; do install_tool "$tree" "$t"; done
	ln -s /bin/busybox "$tree/sbin/modprobe" # the path that the kernel calls
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$tree/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$tree/etc/group"
	printf '127.0.0.1 localhost\n::1 localhost\n' >"$tree/etc/hosts"
	cp "$here/init" "$tree/init"
	chmod 755 "$tree/init"
	build_tests "$tree"
	pack "$tree" "$1"
}

# pack_modules KERNEL CPIO packs the modules listed above and what they need.
pack_modules() {
	local tree=$work/modules release from to f
	release=$(ls "$1/lib/modules")
	from=$1/lib/modules/$release to=$tree/lib/modules/$release
	rm -rf "$tree"
	mkdir -p "$to"
	cp "$from"/modules.{order,builtin} "$to/"
	while read -r f; do
		mkdir -p "$to/$(dirname "$f")"
		cp "$from/$f" "$to/$f"
	done < <(awk -F '[: ]+' -v wanted="${modules[*]}" '
		BEGIN { n = split(wanted, w, " "); for (i = 1; i <= n; i++) want[w[i]] = 1 }
		{ m = $1; sub(/.*\//, "", m); sub(/\.ko$/, "", m); gsub(/-/, "_", m) }
		m in want { for (i = 1; i <= NF; i++) if ($i != "" && !seen[$i]++) print $i }' "$from/modules.dep")
	busybox depmod -b "$tree" "$release"
	pack "$tree" "$2"
}

# --- one kernel --------------------------------------------------------------

# registers FILE writes what each processor of the machine is at.
registers() {
	[[ -p $work/monitor.in ]] || return 0
	echo "info registers -a" >"$work/monitor.in"
	timeout 3 cat "$work/monitor.out" >"$1" || true
}

# boot KERNEL RESULT runs the tests. RESULT is a folder: version, console and
# tests (what the two serial ports said), and outcome: done, timeout, hang or
# crash.
boot() {
	local deadline outcome said said_before=-1 silent_since=$SECONDS
	basename "$1" >"$2/version"
	cp "$work/base/src/packages" "$2/packages"
	: >"$2/tests"
	pack_modules "$1" "$work/modules.cpio"
	rm -f "$work"/monitor.{in,out}
	mkfifo "$work"/monitor.{in,out}
	cat "$work/base.cpio" "$work/modules.cpio" >"$work/initramfs"
	# One thread for both processors: with a thread each, a processor may still run
	# the breakpoint that the other has used to patch the kernel's code and taken
	# away again, which the kernel takes for a crash or waits for without an end.
	# Without cmpxchg16b: right after one, with its operand in the flags, 6.12 has
	# died of a double fault in its own allocator.
	qemu-system-x86_64 -accel tcg,thread=single -cpu max,-cx16 -smp 2 -m "$memory_mib" \
		-nodefaults -no-user-config -display none -no-reboot \
		-kernel "$1/vmlinuz" -initrd "$work/initramfs" \
		-append "console=ttyS0 panic=-1 oops=panic quiet loglevel=5 mitigations=off tsc=reliable" \
		-chardev "pipe,id=monitor,path=$work/monitor" -mon chardev=monitor \
		-serial "file:$2/console" -serial "file:$2/tests" </dev/null &
	qemu=$!
	deadline=$((SECONDS + ${ORB8_KERNEL_TIMEOUT:-900}))
	outcome="done"
	while kill -0 "$qemu" 2>/dev/null; do
		said=$({ cat "$2/console" "$2/tests" 2>/dev/null || true; } | wc -c)
		if ((said != said_before)); then said_before=$said silent_since=$SECONDS; fi
		if ((SECONDS >= deadline)); then outcome=timeout; fi
		if ((SECONDS - silent_since >= ${ORB8_KERNEL_SILENCE:-330})); then outcome=hang; fi
		[[ $outcome == "done" ]] || break
		sleep 0.5
	done
	if kill -0 "$qemu" 2>/dev/null; then
		registers "$2/registers"
	elif ! grep -aq '^orb8-run: done' "$2/tests"; then
		outcome=crash
	fi
	stop_qemu
	echo "$outcome" >"$2/outcome"
	if grep -aE 'WARNING: CPU|BUG: ' "$2/console" >&2; then
		say "$(basename "$1"): the kernel complained, see its console"
	fi
	if [[ $outcome != "done" ]]; then
		say "$(basename "$1"): $outcome; the end of its console:"
		tail -n 60 "$2/console" >&2
		say "and of its tests:"
		tail -n 10 "$2/tests" >&2
		[[ ! -s $2/registers ]] || grep -aE 'CPU#|RIP=' "$2/registers" >&2 || true
	fi
}

# died RESULT is true if the machine hung or crashed: that an emulated one does, if
# rarely, also without a program of orb8's.
died() { [[ $(<"$1/outcome") == hang || $(<"$1/outcome") == crash ]]; }

# keep_logs RESULT NAME
keep_logs() {
	mkdir -p "$cache/logs"
	rm -rf "$cache/logs/$2"
	cp -r "$1" "$cache/logs/$2"
}

main() {
	local write='' some=${ORB8_TEST_PACKAGES:-}${ORB8_TEST_RUN:-} releases=() results=() kernel r started
	while (($#)); do
		case $1 in
		--write-docs) write=-write ;;
		-*) die "unknown option $1; usage: run.sh [--write-docs] [release...]" ;;
		*)
			[[ " ${all_releases[*]} " == *" $1 "* ]] || die "no kernel $1; there are: ${all_releases[*]}"
			releases+=("$1")
			;;
		esac
		shift
	done
	((${#releases[@]})) || releases=("${all_releases[@]}")
	if [[ -n $write ]]; then
		((${#releases[@]} == ${#all_releases[@]})) || die "--write-docs needs all kernels"
		[[ -z $some ]] || die "--write-docs needs all tests"
	fi
	check_host

	work=$(mktemp -d)
	trap cleanup EXIT
	trap 'exit 130' INT TERM HUP
	say "building the tests"
	(cd "$root" && go build -o "$work/report" ./test/kernels/report)
	pack_base "$work/base.cpio"
	for r in "${releases[@]}"; do
		kernel=$("$here/fetch.sh" "$r")
		mkdir -p "$work/results/$r"
		started=$SECONDS
		say "running Linux $r"
		rm -rf "$cache/logs/$r.first"
		boot "$kernel" "$work/results/$r"
		# What fails twice is a result.
		if died "$work/results/$r"; then
			say "Linux $r failed and is started once more, see $cache/logs/$r.first"
			keep_logs "$work/results/$r" "$r.first"
			rm -rf "$work/results/$r"
			mkdir -p "$work/results/$r"
			boot "$kernel" "$work/results/$r"
		fi
		say "Linux $r took $((SECONDS - started)) s"
		results+=("$work/results/$r")
		keep_logs "$work/results/$r" "$r"
	done
	say "logs are in $cache/logs"
	[[ -n $some ]] || results=(-docs "$root/docs/kernels.md" ${write:+"$write"} "${results[@]}")
	"$work/report" "${results[@]}"
}

main "$@"
