// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tcp

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// TestWriteGolden writes the golden record of TestDecodeGolden anew, when asked:
// go test ./internal/probe/tcp -run TestWriteGolden -golden
func TestWriteGolden(t *testing.T) {
	if !*writeGolden {
		t.Skip("only with -golden")
	}
	w := load(t, Config{})
	client, server := pair(t, "tcp6", "::1")
	port := addrOf(client.LocalAddr()).Port()
	w.ring.Reader.SetDeadline(time.Now().Add(time.Second))
	exchange(t, client, server, 100, 50)
	closeBoth(t, client, server)
	for {
		var rec ringbuf.Record
		if err := w.ring.Reader.ReadInto(&rec); err != nil {
			t.Fatal(err)
		}
		var f seen
		if _, err := decode(rec.RawSample, &f.Sample, w.cfg.Clock); err != nil {
			t.Fatal(err)
		}
		if f.LocalPort == port {
			if err := os.WriteFile(filepath.Join("testdata", "closed_ipv6.bin"), rec.RawSample, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

var writeGolden = flag.Bool("golden", false, "write testdata anew")
