// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// message is an object of the API that reads itself from protobuf.
type message interface {
	Unmarshal([]byte) error
}

// protobufMagic begins every protobuf answer of an API server.
const protobufMagic = "k8s\x00"

// maxObject bounds one object of a list: what etcd takes is far smaller.
const maxObject = 32 << 20

// Fields of runtime.Unknown and of every list, by their numbers.
const (
	unknownRaw  = 2
	listMeta    = 1
	listItems   = 2
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

// readList reads a list as an API server sends it, in protobuf or JSON, and hands over each
// object as it comes: the whole of a large cluster's would not fit into an agent's memory.
// newObject makes an empty one. An error of each ends the reading.
func readList[O message](from io.Reader, newObject func() O, each func(O) error) (metav1.ListMeta, error) {
	r := bufio.NewReaderSize(from, 64<<10)
	magic, err := r.Peek(len(protobufMagic))
	if err != nil {
		return metav1.ListMeta{}, unfinished(err)
	}
	if string(magic) != protobufMagic {
		return readJSONList(r, newObject, each)
	}
	if _, err := r.Discard(len(protobufMagic)); err != nil {
		return metav1.ListMeta{}, unfinished(err)
	}
	for { // runtime.Unknown
		number, wire, err := readTag(r)
		if err != nil {
			return metav1.ListMeta{}, unfinished(err) // without the list there is none
		}
		if number != unknownRaw || wire != wireBytes {
			if err := skip(r, wire); err != nil {
				return metav1.ListMeta{}, unfinished(err)
			}
			continue
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return metav1.ListMeta{}, unfinished(err)
		}
		return readItems(&section{r: r, left: size}, newObject, each)
	}
}

// section is a part of an answer, whose end is an end of file.
type section struct {
	r    *bufio.Reader
	left uint64
}

func (s *section) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(uint64(len(p)), s.left)])
	s.left -= uint64(n)
	if err != nil {
		return n, unfinished(err)
	}
	return n, nil
}

func (s *section) ReadByte() (byte, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	b, err := s.r.ReadByte()
	if err != nil {
		return 0, unfinished(err)
	}
	s.left--
	return b, nil
}

func readItems[O message](r *section, newObject func() O, each func(O) error) (meta metav1.ListMeta, err error) {
	var buffer []byte
	for {
		number, wire, err := readTag(r)
		if errors.Is(err, io.EOF) {
			return meta, nil
		}
		if err != nil {
			return meta, err
		}
		if wire != wireBytes || number != listMeta && number != listItems {
			if err := skip(r, wire); err != nil {
				return meta, unfinished(err)
			}
			continue
		}
		size, err := binary.ReadUvarint(r)
		if err != nil {
			return meta, unfinished(err)
		}
		if size > maxObject {
			return meta, fmt.Errorf("an object of %d bytes in a list", size)
		}
		if uint64(cap(buffer)) < size {
			buffer = make([]byte, size)
		}
		buffer = buffer[:size]
		if _, err := io.ReadFull(r, buffer); err != nil {
			return meta, unfinished(err)
		}
		if number == listMeta {
			if err := meta.Unmarshal(buffer); err != nil {
				return meta, fmt.Errorf("read a list's metadata: %w", err)
			}
			continue
		}
		o := newObject()
		if err := o.Unmarshal(buffer); err != nil {
			return meta, fmt.Errorf("read an object of a list: %w", err)
		}
		if err := each(o); err != nil {
			return meta, err
		}
	}
}

// tagReader is what fields are read from.
type tagReader interface {
	io.Reader
	io.ByteReader
}

// readTag reads which field comes next. The error is io.EOF where there is none.
func readTag(r tagReader) (number uint64, wire int, err error) {
	tag, err := binary.ReadUvarint(r)
	return tag >> 3, int(tag & 7), err
}

// skip passes over a field that is not wanted.
func skip(r tagReader, wire int) error {
	var size uint64
	switch wire {
	case wireVarint:
		_, err := binary.ReadUvarint(r)
		return err
	case wireFixed64:
		size = 8
	case wireFixed32:
		size = 4
	case wireBytes:
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return err
		}
		size = n
	default:
		return fmt.Errorf("a field of wire type %d in a list", wire)
	}
	if size > maxObject {
		return fmt.Errorf("a field of %d bytes in a list", size)
	}
	_, err := io.CopyN(io.Discard, r, int64(size))
	return err
}

// unfinished makes an end in the middle of something an error.
func unfinished(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readJSONList[O message](r io.Reader, newObject func() O, each func(O) error) (meta metav1.ListMeta, err error) {
	d := json.NewDecoder(r)
	if err := delim(d, '{'); err != nil {
		return meta, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return meta, unfinished(err)
		}
		switch key {
		case "metadata":
			err = d.Decode(&meta)
		case "items":
			err = jsonItems(d, newObject, each)
		default:
			err = d.Decode(new(json.RawMessage))
		}
		if err != nil {
			return meta, unfinished(err)
		}
	}
	return meta, delim(d, '}')
}

func jsonItems[O message](d *json.Decoder, newObject func() O, each func(O) error) error {
	var first json.RawMessage
	// null stands for no items.
	if token, err := d.Token(); err != nil || token == nil {
		return err
	} else if token != json.Delim('[') {
		return fmt.Errorf("items of a list begin with %v", token)
	}
	for d.More() {
		if err := d.Decode(&first); err != nil {
			return err
		}
		o := newObject()
		if err := json.NewDecoder(bytes.NewReader(first)).Decode(o); err != nil {
			return fmt.Errorf("read an object of a list: %w", err)
		}
		if err := each(o); err != nil {
			return err
		}
	}
	return delim(d, ']')
}

func delim(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err != nil {
		return unfinished(err)
	}
	if token != want {
		return fmt.Errorf("a list has %v where %v was expected", token, want)
	}
	return nil
}
