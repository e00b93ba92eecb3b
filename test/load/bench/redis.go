// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	redisProgram = "redis-server"
	redisRequest = "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"
	redisAnswer  = "$5\r\nvalue\r\n"
)

// redis is a server of that name and one connection to it.
type redis struct {
	cmd *exec.Cmd
	dir string
	fd  int
	// clock counts the CPU time of the server.
	clock int32
	buf   []byte
}

// startRedis returns nil where the program is not installed.
func startRedis() (*redis, error) {
	path, err := exec.LookPath(redisProgram)
	if err != nil {
		say("%s is not installed: not measured", redisProgram)
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "orb8-bench-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "redis")
	cmd := exec.Command(path, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// The number of a process's clock of CPU time is made of its pid, as
	// clock_getcpuclockid(3) does.
	r := &redis{cmd: cmd, dir: dir, fd: -1, clock: ^int32(cmd.Process.Pid)<<3 | 2, buf: make([]byte, 64)}
	if err := r.connect(socket); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *redis) connect(socket string) error {
	var err error
	if r.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = unix.Connect(r.fd, &unix.SockaddrUnix{Name: socket}); err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("connect to %s at %s: %w", redisProgram, socket, err)
		}
	}
	return r.ask("*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n", "+OK\r\n")
}

func (r *redis) get() error { return r.ask(redisRequest, redisAnswer) }

func (r *redis) ask(request, answer string) error {
	if _, err := unix.Write(r.fd, []byte(request)); err != nil {
		return os.NewSyscallError("write", err)
	}
	n, err := unix.Read(r.fd, r.buf)
	if err != nil {
		return os.NewSyscallError("read", err)
	}
	if got := string(r.buf[:n]); got != answer {
		return fmt.Errorf("%s answered %q, want %q", redisProgram, got, answer)
	}
	return nil
}

func (r *redis) close() error {
	if r == nil {
		return nil
	}
	if r.fd >= 0 {
		_ = unix.Close(r.fd)
	}
	err := r.cmd.Process.Kill()
	_ = r.cmd.Wait() // it was killed
	return errors.Join(err, os.RemoveAll(r.dir))
}
