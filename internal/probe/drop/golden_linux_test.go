// SPDX-License-Identifier: Apache-2.0

//go:build linux

package drop

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/flow"
)

// TestWriteGolden writes the golden event of TestDecodeGolden anew, when asked:
// go test ./internal/probe/drop -run TestWriteGolden -golden
func TestWriteGolden(t *testing.T) {
	if !*writeGolden {
		t.Skip("only with -golden")
	}
	r := load(t, nil)
	if _, err := send(1, 33, "[::1]:0", "[::1]:9"); err != nil {
		t.Fatal(err)
	}
	r.ring.Reader.SetDeadline(time.Now().Add(time.Second))
	for {
		rec, err := r.ring.Reader.Read()
		if err != nil {
			t.Fatal(err)
		}
		e, err := readEvent(rec.RawSample)
		if err != nil {
			t.Fatal(err)
		}
		if e.DstPort == 9 && e.Protocol == uint8(flow.UDP) && e.Bytes == 40+8+33 {
			if err := os.WriteFile(filepath.Join("testdata", "no_socket_ipv6.bin"), rec.RawSample[:eventSize], 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

var writeGolden = flag.Bool("golden", false, "write testdata anew")
