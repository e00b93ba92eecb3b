// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The committed tables are those that the module in go.mod gives.
func TestGenerated(t *testing.T) {
	dir, version, err := find()
	if err != nil {
		t.Fatal(err)
	}
	got, err := generate(filepath.Join(dir, "unix"), version)
	if err != nil {
		t.Fatal(err)
	}
	const file = "../../internal/syscalls/" + output
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not up to date: go generate ./internal/syscalls", file)
	}
}

func TestNoConstants(t *testing.T) {
	file := filepath.Join(t.TempDir(), "empty.go")
	if err := os.WriteFile(file, []byte("package unix\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := constants(file, "SYS_"); err == nil {
		t.Error("a file without constants gave no error")
	}
}
