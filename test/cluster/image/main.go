// SPDX-License-Identifier: Apache-2.0

// Command image writes a folder as an OCI image of one layer, in an archive that
// `ctr images import` takes:
//
//	image -o out.tar -ref registry/name:tag -entrypoint /program DIR
//
// The same folder always makes the same bytes. Files keep their permissions, the
// setuid bit among them, but not their owners; there are no device nodes.
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
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

// blob is a file that is named by its content: data, or what is in the file at path.
type blob struct {
	mediaType string
	hash      string
	size      int64
	data      []byte
	path      string
}

func newBlob(mediaType string, data []byte) blob {
	sum := sha256.Sum256(data)
	return blob{mediaType: mediaType, hash: hex.EncodeToString(sum[:]), size: int64(len(data)), data: data}
}

func (b blob) descriptor() map[string]any {
	return map[string]any{"mediaType": b.mediaType, "digest": "sha256:" + b.hash, "size": b.size}
}

// writeTo adds the blob to an archive.
func (b blob) writeTo(tw *tar.Writer, name string) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: b.size, Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	if b.path != "" {
		return copyFile(tw, b.path)
	}
	_, err := tw.Write(b.data)
	return err
}

const mediaType = "application/vnd.oci.image."

// jsonBlob encodes v; what is passed here can always be encoded.
func jsonBlob(kind string, v any) blob {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return newBlob(mediaType+kind+".v1+json", data)
}

func write(o *options, dir string) error {
	layer, err := archive(dir, o.out+".layer")
	defer os.Remove(o.out + ".layer")
	if err != nil {
		return fmt.Errorf("archive %s: %w", dir, err)
	}
	config := jsonBlob("config", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{o.entrypoint}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + layer.hash}},
	})
	manifest := jsonBlob("manifest", map[string]any{
		"schemaVersion": 2, "mediaType": mediaType + "manifest.v1+json",
		"config": config.descriptor(), "layers": []any{layer.descriptor()},
	})
	out, err := os.Create(o.out)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(out)
	err = newBlob("", []byte(`{"imageLayoutVersion":"1.0.0"}`)).writeTo(tw, "oci-layout")
	for _, b := range []blob{layer, config, manifest} {
		err = errors.Join(err, b.writeTo(tw, "blobs/sha256/"+b.hash))
	}
	err = errors.Join(err, index(o.ref, manifest).writeTo(tw, "index.json"))
	return errors.Join(err, tw.Close(), out.Close())
}

// index names the image.
func index(ref string, manifest blob) blob {
	entry := manifest.descriptor()
	entry["platform"] = map[string]any{"architecture": runtime.GOARCH, "os": "linux"}
	entry["annotations"] = map[string]string{
		"io.containerd.image.name":          ref,
		"org.opencontainers.image.ref.name": ref[strings.LastIndex(ref, ":")+1:],
	}
	return jsonBlob("index", map[string]any{
		"schemaVersion": 2, "mediaType": mediaType + "index.v1+json", "manifests": []any{entry},
	})
}

// archive writes dir as a layer to a file: everything belongs to root and is as old
// as Unix.
func archive(dir, path string) (blob, error) {
	out, err := os.Create(path)
	if err != nil {
		return blob{}, err
	}
	sum := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(out, sum))
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		return add(tw, dir, path, d)
	})
	err = errors.Join(err, tw.Close())
	size, seekErr := out.Seek(0, io.SeekCurrent)
	if err = errors.Join(err, seekErr, out.Close()); err != nil {
		return blob{}, err
	}
	return blob{mediaType: mediaType + "layer.v1.tar", hash: hex.EncodeToString(sum.Sum(nil)), size: size, path: path}, nil
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
	h := &tar.Header{Name: name, Mode: mode(info.Mode()), ModTime: time.Unix(0, 0)}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return tw.WriteHeader(h)
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
		return tw.WriteHeader(h)
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		return copyFile(tw, path)
	}
	return fmt.Errorf("%s is neither a file nor a folder nor a symbolic link", path)
}

// mode is a file's permissions as archives have them.
func mode(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for flag, bit := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}
