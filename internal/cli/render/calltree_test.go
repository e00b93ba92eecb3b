// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"strings"
	"testing"
	"time"

	orb8v1 "github.com/Ignoramuss/orb8/api/orb8/v1"
)

// calling is a call of a process of a container.
func calling(container string, pid, parent uint32, command, call string, took time.Duration) *orb8v1.Event {
	return &orb8v1.Event{
		TimeNs: 1_795_426_863_000_000_000, NodeName: "n1",
		Event: &orb8v1.Event_Syscall{Syscall: &orb8v1.Syscall{
			Workload: &orb8v1.Workload{Namespace: "shop", PodName: "web-0", ContainerId: container, Kind: "StatefulSet", Name: "web"},
			Process:  &orb8v1.Process{Pid: pid, Command: command}, ParentProcessId: parent, ThreadId: pid,
			Name: call, Abi: "amd64", LatencyNs: int64(took),
		}},
	}
}

func treeEvents() []*orb8v1.Event {
	const one, two = "4f2d9c1e8a7b4f2d9c1e8a7b", "aaaa9c1e8a7b4f2d9c1e8a7b"
	events := []*orb8v1.Event{
		calling(one, 101, 100, "sh", "execve", time.Millisecond), // before its parent
		calling(one, 100, 7, "nginx", "epoll_wait", 2*time.Second),
		calling(one, 100, 7, "nginx", "read", 3*time.Microsecond),
		calling(one, 100, 7, "nginx", "read", 2*time.Microsecond),
		calling(one, 102, 101, "curl", "connect", 40*time.Millisecond),
		calling(one, 102, 1, "curl", "write", time.Microsecond), // its parent has gone
		calling(one, 103, 101, "a\x1b[31mb", "openat", time.Microsecond),
		calling(one, 104, 100, "nginx", "futex", time.Microsecond),
		calling(two, 300, 300, "own", "getpid", 0), // its own parent
		calling(two, 301, 302, "one", "getpid", 0), // each other's
		calling(two, 302, 301, "two", "getpid", 0),
	}
	events[6].GetSyscall().Error = "EACCES"
	events[6].GetSyscall().Rules = []string{"setns"}
	return events
}

func TestCallTree(t *testing.T) {
	var tree CallTree
	for _, ev := range treeEvents() {
		tree.Add(ev)
	}
	for _, tt := range formats {
		if tt.format == JSON {
			continue
		}
		name := nameOf("calltree", tt.format, tt.width)
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := tree.Write(&b, Options{Format: tt.format, Width: tt.width, Nodes: tt.width == 100, Location: time.UTC}); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.String())
			fits(t, b.String(), tt.format, tt.width)
			safe(t, b.String())
		})
	}
}

// TestCallTreeIsBounded: what finds no room is said.
func TestCallTreeIsBounded(t *testing.T) {
	var tree CallTree
	for pid := range uint32(maxCallers + 3) {
		tree.Add(calling("c", pid+10, pid+9, "deep", "getpid", 0))
	}
	tree.Add(calling("c", 10, 9, "deep", "getpid", 0))
	var b bytes.Buffer
	if err := tree.Write(&b, Options{Format: Table, Width: 80, Location: time.UTC}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if want := "3 calls of more than 10,000 processes not shown"; len(lines) != maxCallers+3 || lines[len(lines)-1] != want {
		t.Errorf("%d lines, the last one %q, want %q", len(lines), lines[len(lines)-1], want)
	}
	if deepest := strings.Fields(lines[len(lines)-2]); !strings.HasSuffix(strings.Join(deepest, " "), "deep/10009 1 0 0.000000 getpid 0ns (1)") {
		t.Errorf("the deepest is %q", lines[len(lines)-2])
	}
	fits(t, b.String(), Table, 80)
}
