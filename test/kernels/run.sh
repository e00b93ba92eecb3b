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
# Each package has a machine of its own on each kernel: these start in seconds, use
# one CPU of the host each, and run side by side. A test that fails is run once more,
# alone in a machine; if it passes then, the run says "flaky: NAME (what it said)". A
# machine that crashes or hangs is started once more.
#
# Environment:
#   ORB8_KERNEL_CACHE     kernels and logs [~/.cache/orb8/kernels]
#   ORB8_KERNEL_OFFLINE   1: use the kernels in the cache, ask no mirror
#   ORB8_KERNEL_JOBS      machines at a time [as many as the host has CPUs]
#   ORB8_KERNEL_TIMEOUT   seconds for one machine [900]
#   ORB8_KERNEL_SILENCE   seconds without a word from a test or the kernel, after
#                         which the emulated machine is taken to hang [630]: more
#                         than ORB8_TEST_TIMEOUT, as a test that hangs tells where
#   ORB8_TEST_TIMEOUT     the -test.timeout of one package [10m]: emulated machines are
#                         slow, and slower where the host does other things
#   ORB8_TEST_PACKAGES    packages to test instead of all, and
#   ORB8_TEST_RUN         their -test.run: with either of them the result is not
#                         compared with docs/kernels.md
#   ORB8_KERNEL_OPTIONS   more options for the kernel's command line
#   ORB8_DEBIAN_MIRROR    URL of a Debian mirror, for machines whose apt has
#                         none; its security repository is the same + -security

set -euo pipefail

# Every package here that has tests is run, in this order.
packages=(./test/kernels/smoke ./internal/probe/...)
[[ -z ${ORB8_TEST_PACKAGES:-} ]] || read -ra packages <<<"$ORB8_TEST_PACKAGES"
tools=(busybox ip nft ping)
# What tests may use; what these need comes along. The rest stays out, so that
# the initramfs is quick to unpack.
modules=(
	veth dummy tun bridge overlay inet_diag tcp_diag udp_diag
	nf_tables nft_counter nft_numgen nft_limit nft_ct nft_reject_inet
	nft_quota nft_chain_nat nft_nat nft_masq nft_redir
)
memory_mib=2048
# What these emulated machines are slow at is left out. Without erms, the kernel does
# not copy and clear memory byte by byte, at which the verifier of programs spends a
# third of its time.
# Without cx16: right after a cmpxchg16b, with its operand in the flags, 6.12 has
# died of a double fault in its own allocator.
cpu=max,-cx16,-erms
# The time comes from the HPET, as the kernel measures the TSC against an emulated timer,
# and where the host was busy at that moment all time has run five times as fast since:
# tests waited 6 s for 30. Try it with ORB8_KERNEL_OPTIONS=tsc_early_khz=500000.
options="console=ttyS0 panic=-1 oops=panic quiet loglevel=5 mitigations=off clocksource=hpet tsc=reliable init_on_alloc=0 ${ORB8_KERNEL_OPTIONS:-}"

root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/test/kernels
mapfile -t all_releases < <(awk '!/^#/ { print $1 }' "$here/versions")
cache=${ORB8_KERNEL_CACHE:-$HOME/.cache/orb8/kernels}
jobs=${ORB8_KERNEL_JOBS:-$(nproc)}
work=
# Of one machine:
qemu=
job=

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
	# The machines that still run, each of which stops its QEMU.
	local running
	running=$(jobs -p)
	# shellcheck disable=SC2086 # one word each
	[[ -z $running ]] || kill $running 2>/dev/null || true
	wait
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

# write_options TREE PACKAGE RUN tells init what to do.
write_options() {
	mkdir -p "$1/src"
	printf "package='%s'\ntimeout='%s'\nrun='%s'\n" "$2" "${ORB8_TEST_TIMEOUT:-10m}" "$3" >"$1/src/options"
}

# pack_tests compiles the tests of each package and packs them, the Nth package into
# $work/tests.N.cpio. It lists the packages in $work/packages.
pack_tests() {
	local list dir tree n=0
	list=$(cd "$root" && go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "${packages[@]}")
	[[ -n $list ]] || die "no tests in ${packages[*]}"
	for dir in $list; do
		dir=${dir#"$root"/}
		tree=$work/tests.$n
		mkdir -p "$tree/src/$dir"
		(cd "$root" && CGO_ENABLED=0 go test -c -ldflags='-s -w' -o "$tree/src/$dir/pkg.test" "./$dir")
		[[ ! -d $root/$dir/testdata ]] || cp -r "$root/$dir/testdata" "$tree/src/$dir/"
		write_options "$tree" "$dir" "${ORB8_TEST_RUN:-}"
		pack "$tree" "$work/tests.$n.cpio"
		rm -rf "$tree"
		echo "$dir" >>"$work/packages"
		n=$((n + 1))
	done
}

# pack_base packs what all machines share: tools and init.
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
	pack "$tree" "$work/base.cpio"
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

# --- one machine -------------------------------------------------------------

# registers FILE writes what each processor of the machine is at.
registers() {
	[[ -p $job/monitor.in ]] || return 0
	echo "info registers -a" >"$job/monitor.in"
	timeout 3 cat "$job/monitor.out" >"$1" || true
}

# start_qemu VMLINUZ INITRAMFS RESULT
start_qemu() {
	rm -f "$job"/monitor.{in,out}
	mkfifo "$job"/monitor.{in,out}
	# One thread for both processors: with a thread each, a processor may still run
	# the breakpoint that the other has used to patch the kernel's code and taken
	# away again, which the kernel takes for a crash or waits for without an end.
	qemu-system-x86_64 -accel tcg,thread=single -cpu "$cpu" -smp 2 -m "$memory_mib" \
		-nodefaults -no-user-config -display none -no-reboot \
		-kernel "$1" -initrd "$2" -append "$options" \
		-chardev "pipe,id=monitor,path=$job/monitor" -mon chardev=monitor \
		-serial "file:$3/console" -serial "file:$3/tests" </dev/null &
	qemu=$!
}

# watch RESULT waits for the end of the machine, or until it takes too long, and sets
# outcome: done, timeout, hang or crash.
watch() {
	local deadline=$((SECONDS + ${ORB8_KERNEL_TIMEOUT:-900})) said said_before=-1 silent_since=$SECONDS
	while kill -0 "$qemu" 2>/dev/null; do
		said=$({ cat "$1/console" "$1/tests" 2>/dev/null || true; } | wc -c)
		if ((said != said_before)); then said_before=$said silent_since=$SECONDS; fi
		if ((SECONDS >= deadline)); then outcome=timeout; fi
		if ((SECONDS - silent_since >= ${ORB8_KERNEL_SILENCE:-630})); then outcome=hang; fi
		[[ ! $outcome ]] || return 0
		sleep 0.5
	done
	if grep -aq '^orb8-run: done' "$1/tests"; then outcome="done"; else outcome=crash; fi
}

# boot KERNEL RELEASE N RESULT [CPIO] runs the tests of the Nth package, with the files
# of CPIO over its own. RESULT is a folder: console and tests (what the two serial ports
# said), and outcome.
boot() {
	local what outcome=''
	what="$(basename "$1") $(sed -n "$(($3 + 1))p" "$work/packages")"
	: >"$4/tests"
	cat "$work/base.cpio" "$work/modules.$2.cpio" "$work/tests.$3.cpio" ${5:+"$5"} >"$job/initramfs"
	start_qemu "$1/vmlinuz" "$job/initramfs" "$4"
	watch "$4"
	if kill -0 "$qemu" 2>/dev/null; then registers "$4/registers"; fi
	stop_qemu
	rm -f "$job/initramfs"
	echo "$outcome" >"$4/outcome"
	if grep -aE 'WARNING: CPU|BUG: ' "$4/console" >&2; then
		say "$what: the kernel complained, see its console"
	fi
	if [[ $outcome != "done" ]]; then
		say "$what: $outcome; the end of its console:"
		tail -n 60 "$4/console" >&2
		say "and of its tests:"
		tail -n 10 "$4/tests" >&2
		[[ ! -s $4/registers ]] || grep -aE 'CPU#|RIP=' "$4/registers" >&2 || true
	fi
}

# died RESULT is true if the machine hung or crashed: that an emulated one does, if
# rarely, also without a program of orb8's.
died() { [[ $(<"$1/outcome") == hang || $(<"$1/outcome") == crash ]]; }

# run_job KERNEL RELEASE N is boot, once more if the machine died. The result is
# $work/RELEASE.N.
run_job() {
	local result=$work/$2.$3 started=$SECONDS package
	package=$(sed -n "$(($3 + 1))p" "$work/packages")
	job=$result.job
	trap stop_qemu EXIT
	trap 'exit 130' INT TERM HUP
	mkdir -p "$result" "$job"
	boot "$1" "$2" "$3" "$result"
	# What fails twice is a result.
	if died "$result"; then
		say "Linux $2 failed and is started once more, see $cache/logs/$2.first"
		mkdir -p "$cache/logs/$2.first"
		rm -rf "$cache/logs/$2.first/$3"
		cp -r "$result" "$cache/logs/$2.first/$3"
		rm -rf "$result"
		mkdir -p "$result"
		boot "$1" "$2" "$3" "$result"
	fi
	say "Linux $2 $package took $((SECONDS - started)) s"
}

# run_all RELEASE... runs all packages on all kernels, some at a time. The larger
# packages are the last ones of the list: begun first, so that the small ones fill
# what is left.
run_all() {
	local n r running=0
	for ((n = $(wc -l <"$work/packages") - 1; n >= 0; n--)); do
		for r in "$@"; do
			if ((running >= jobs)); then
				wait -n
				running=$((running - 1))
			fi
			run_job "${kernels[$r]}" "$r" "$n" &
			running=$((running + 1))
		done
	done
	while ((running > 0)); do
		wait -n
		running=$((running - 1))
	done
}

# retry RELEASE... runs tests that failed once more, each alone in a machine, and adds
# what they say to the release's result. More than a few are no accident.
retry() {
	local r package test n tries=0 tree=$work/again result
	while read -r r package test; do
		((++tries <= 3)) || break
		n=$(($(grep -nxF "$package" "$work/packages" | cut -d: -f1) - 1))
		say "Linux $r: $package $test failed: once more, alone"
		write_options "$tree" "$package" "^$test\$"
		pack "$tree" "$work/again.cpio"
		result=$work/again.$tries job=$work/again.$tries.job
		mkdir -p "$result" "$job"
		boot "${kernels[$r]}" "$r" "$n" "$result" "$work/again.cpio"
		cat "$result/tests" >>"$work/results/$r/again"
		cp -r "$result" "$cache/logs/$r/again.$tries"
	done < <("$work/report" -retry "$@")
}

# collect RELEASE makes one result of those of its packages: what they said, in the
# order of the packages, and how the worst of them ended.
collect() {
	local n from to=$work/results/$1 outcome="done"
	mkdir -p "$to"
	cp "$work/packages" "$to/packages"
	basename "${kernels[$1]}" >"$to/version"
	for ((n = 0; n < $(wc -l <"$work/packages"); n++)); do
		from=$work/$1.$n
		cat "$from/console" >>"$to/console"
		cat "$from/tests" >>"$to/tests"
		[[ ! -s $from/registers ]] || cat "$from/registers" >>"$to/registers"
		[[ $(<"$from/outcome") == "done" ]] || outcome=$(<"$from/outcome")
	done
	echo "$outcome" >"$to/outcome"
	mkdir -p "$cache/logs"
	rm -rf "$cache/logs/$1"
	cp -r "$to" "$cache/logs/$1"
}

main() {
	local write='' some=${ORB8_TEST_PACKAGES:-}${ORB8_TEST_RUN:-} releases=() results=() r
	declare -A kernels
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
	pack_base
	pack_tests
	for r in "${releases[@]}"; do
		kernels[$r]=$("$here/fetch.sh" "$r")
		pack_modules "${kernels[$r]}" "$work/modules.$r.cpio"
		rm -rf "$cache/logs/$r.first"
	done
	say "running Linux ${releases[*]}, $jobs machines at a time"
	run_all "${releases[@]}"
	for r in "${releases[@]}"; do
		collect "$r"
		results+=("$work/results/$r")
	done
	retry "${results[@]}"
	say "logs are in $cache/logs"
	[[ -n $some ]] || results=(-docs "$root/docs/kernels.md" ${write:+"$write"} "${results[@]}")
	"$work/report" "${results[@]}"
}

main "$@"
