// SPDX-License-Identifier: Apache-2.0

package syscall

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var writeGolden = flag.Bool("golden", false, "write testdata anew")

// TestWriteGolden writes the golden records of TestDecodeGolden anew, when asked:
// go test ./internal/probe/syscall -run TestWriteGolden -golden
func TestWriteGolden(t *testing.T) {
	if !*writeGolden {
		t.Skip("only with -golden")
	}
	r := load(t, nil)
	r.run(t, "golden")
	written := map[string]bool{}
	ring, err := r.Ring(r.Core.Maps[bpfMapSyscallRing], time.Second, func(raw []byte) {
		var e Event
		if err := decode(raw, &e, r.cfg.Clock); err != nil {
			t.Error(err)
		}
		name := map[int32]string{unix.SYS_OPENAT: "openat", unix.SYS_CONNECT: "connect"}[e.Number]
		if name == "" || e.Number == unix.SYS_OPENAT && e.Strings[1] != "plain" {
			return
		}
		written[name] = true
		raw = bytes.Clone(raw[:headSize+textBytes(raw)])
		if err := os.WriteFile(filepath.Join("testdata", name+".bin"), raw, 0o644); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Drain(); err != nil {
		t.Fatal(err)
	}
	if len(written) != 2 {
		t.Errorf("written: %v", written)
	}
}

// textBytes is how much text a record has; what follows is the ring's.
func textBytes(raw []byte) int {
	var c bpfCall
	copy(bytesOf(&c)[:headSize], raw)
	return int(c.Used)
}
