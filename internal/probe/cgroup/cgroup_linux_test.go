// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/Ignoramuss/orb8/internal/loss"
	"github.com/Ignoramuss/orb8/internal/probe/probetest"
)

type made struct {
	id   uint64
	path string
}

// start runs the probe until the test ends.
func start(t *testing.T) (*Probe, <-chan made) {
	t.Helper()
	told := make(chan made, 1024)
	p := New(Config{Losses: new(loss.Counters), Made: func(id uint64, path string) { told <- made{id, path} }})
	probetest.Start(t, p, "cgroups as they are made")
	t.Cleanup(func() {
		if err := p.Collect(); err != nil {
			t.Errorf("Collect: %v", err)
		}
	})
	probetest.Run(t, p)
	return p, told
}

// find waits for a cgroup with that id.
func find(t *testing.T, told <-chan made, id uint64) string {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case m := <-told:
			if m.id == id {
				return m.path
			}
		case <-timeout:
			t.Fatalf("nothing was told of cgroup %d", id)
		}
	}
}

// A cgroup that is gone at once is told of with its id and path.
func TestShortLivedCgroup(t *testing.T) {
	_, told := start(t)
	dir, id := probetest.NewCgroup(t)
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	innerID := probetest.CgroupID(t, inner)
	if err := os.Remove(inner); err != nil {
		t.Fatal(err)
	}
	path := find(t, told, id)
	if !strings.HasPrefix(path, "/") || filepath.Base(path) != filepath.Base(dir) {
		t.Errorf("path %q of %s", path, dir)
	}
	if got := find(t, told, innerID); got != path+"/inner" {
		t.Errorf("path %q, want %q", got, path+"/inner")
	}
}

// A path that does not fit is counted, not cut.
func TestLongPath(t *testing.T) {
	p, told := start(t)
	dir, _ := probetest.NewCgroup(t)
	long := dir
	for range 3 {
		long = filepath.Join(long, strings.Repeat("x", 200))
		if err := os.Mkdir(long, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func(d string) func() { return func() { _ = os.Remove(d) } }(long))
	}
	find(t, told, probetest.CgroupID(t, filepath.Dir(long)))
	if err := p.Collect(); err != nil {
		t.Fatal(err)
	}
	if p.cfg.Losses.Get(loss.CgroupUntold) == 0 {
		t.Error("the path that does not fit was not counted")
	}
}

func TestDecode(t *testing.T) {
	good := make([]byte, unsafe.Sizeof(bpfCgroupMade{}))
	binary.NativeEndian.PutUint64(good, 42)
	copy(good[8:], "/kubepods/x")
	if id, path, err := decode(good); id != 42 || path != "/kubepods/x" || err != nil {
		t.Errorf("decode = %d, %q, %v", id, path, err)
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "short": good[:100], "no path": make([]byte, len(good)),
		"no end":   append(append([]byte{}, good[:8]...), []byte("/"+strings.Repeat("x", len(good)-9))...),
		"no slash": append(append([]byte{}, good[:8]...), append([]byte("x"), make([]byte, len(good)-9)...)...),
	} {
		if _, _, err := decode(raw); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(make([]byte, unsafe.Sizeof(bpfCgroupMade{})))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, path, err := decode(raw); err == nil && !strings.HasPrefix(path, "/") {
			t.Errorf("path %q", path)
		}
	})
}
