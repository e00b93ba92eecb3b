// SPDX-License-Identifier: Apache-2.0

//go:build linux

package exec

import (
	"flag"
	"os"
	osexec "os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/Ignoramuss/orb8/internal/probe/probetest"
	"github.com/Ignoramuss/orb8/internal/process"
)

// TestWriteGolden writes the golden record of TestDecodeGolden anew, when asked:
// go test ./internal/probe/exec -run TestWriteGolden -golden
func TestWriteGolden(t *testing.T) {
	if !*writeGolden {
		t.Skip("only with -golden")
	}
	dir, id := probetest.NewCgroup(t)
	r := load(t, func(c *Config) { c.CgroupID = id })
	const folder = "/tmp/orb8-golden"
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := write(t, filepath.Join(folder, "quick"), quick(0), 0o755)
	script := write(t, filepath.Join(folder, "script"), []byte("#!"+path+" -x\n"), 0o755)
	cmd := osexec.Command(script, "one")
	probetest.InCgroup(t, cmd, dir)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	r.ring.Reader.SetDeadline(time.Now().Add(time.Second))
	for {
		var rec ringbuf.Record
		if err := r.ring.Reader.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		var e process.Event
		if err := decode(rec.RawSample, &e, ahead{}); err != nil {
			t.Fatal(err)
		}
		if e.What == process.Exec {
			if err := os.WriteFile(filepath.Join("testdata", "exec.bin"), rec.RawSample, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

var writeGolden = flag.Bool("golden", false, "write testdata anew")
