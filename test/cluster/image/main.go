// SPDX-License-Identifier: Apache-2.0

// Command image writes a folder as an OCI image of one layer, in an archive that
// `ctr images import` takes:
//
//	image -o out.tar -ref registry/name:tag -entrypoint /program DIR
//
// The same folder always makes the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.out, "o", "image.tar", "archive to write")
	flag.StringVar(&o.ref, "ref", "", "reference of the image, as registry/name:tag")
	flag.StringVar(&o.entrypoint, "entrypoint", "", "program that the image runs")
	flag.Parse()
	if flag.NArg() != 1 || o.ref == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := write(&o, flag.Arg(0)); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

type options struct{ out, ref, entrypoint string }

// blob is a file that is named by its content.
type blob struct {
	mediaType string
	data      []byte
}

func (b blob) hash() string {
	sum := sha256.Sum256(b.data)
	return hex.EncodeToString(sum[:])
}

func (b blob) descriptor() map[string]any {
	return map[string]any{"mediaType": b.mediaType, "digest": "sha256:" + b.hash(), "size": len(b.data)}
}

const mediaType = "application/vnd.oci.image."

// jsonBlob encodes v; what is passed here can always be encoded.
func jsonBlob(kind string, v any) blob {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return blob{mediaType + kind + ".v1+json", data}
}

func write(o *options, dir string) error {
	layer, err := archive(dir)
	if err != nil {
		return fmt.Errorf("archive %s: %w", dir, err)
	}
	platform := map[string]any{"architecture": runtime.GOARCH, "os": "linux"}
	config := jsonBlob("config", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{o.entrypoint}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layer.hash()}},
	})
	manifest := jsonBlob("manifest", map[string]any{
		"schemaVersion": 2, "mediaType": mediaType + "manifest.v1+json",
		"config": config.descriptor(), "layers": []any{layer.descriptor()},
	})
	entry := manifest.descriptor()
	entry["platform"] = platform
	entry["annotations"] = map[string]string{
		"io.containerd.image.name":          o.ref,
		"org.opencontainers.image.ref.name": o.ref[strings.LastIndex(o.ref, ":")+1:],
	}
	index := jsonBlob("index", map[string]any{
		"schemaVersion": 2, "mediaType": mediaType + "index.v1+json", "manifests": []any{entry},
	})
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	files := []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"blobs/sha256/" + layer.hash(), layer.data},
		{"blobs/sha256/" + config.hash(), config.data},
		{"blobs/sha256/" + manifest.hash(), manifest.data},
		{"index.json", index.data},
	}
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return os.WriteFile(o.out, out.Bytes(), 0o644)
}

// archive returns dir as a layer: everything belongs to root and is as old as
// Unix.
func archive(dir string) (blob, error) {
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return add(tw, dir, path, d)
	})
	if err != nil {
		return blob{}, err
	}
	if err := tw.Close(); err != nil {
		return blob{}, err
	}
	return blob{mediaType + "layer.v1.tar", out.Bytes()}, nil
}

func add(tw *tar.Writer, dir, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(dir, path)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm()), ModTime: time.Unix(0, 0)}
	if d.IsDir() {
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return tw.WriteHeader(h)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a folder", path)
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
