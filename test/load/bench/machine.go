// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// describeMachine returns one line per fact, without the machine's name.
func describeMachine() []string {
	var u unix.Utsname
	_ = unix.Uname(&u) // leaves it empty
	cpu := cpuField("model name")
	if cpu == "" {
		cpu = "unknown"
	}
	var virtual string
	if strings.Contains(" "+cpuField("flags")+" ", " hypervisor ") {
		virtual = ", a virtual machine"
	}
	facts := []string{
		fmt.Sprintf("CPU: %s, family %s, model %s, %d cores%s", cpu, cpuField("cpu family"), cpuField("model"), runtime.NumCPU(), virtual),
		fmt.Sprintf("kernel: Linux %s, %s", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])),
		"frequency governor: " + firstLine("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "none visible"),
		"clock source: " + firstLine("/sys/devices/system/clocksource/clocksource0/current_clocksource", "unknown"),
		"compiler: " + runtime.Version(),
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		facts = append(facts, fmt.Sprintf("memory: %d GiB", info.Totalram*uint64(info.Unit)>>30))
	}
	return facts
}

func cpuField(name string) string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func firstLine(path, otherwise string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return otherwise
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
