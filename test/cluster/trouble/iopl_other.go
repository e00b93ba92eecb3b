// SPDX-License-Identifier: Apache-2.0

//go:build linux && !amd64

package main

import "golang.org/x/sys/unix"

// iopl is a call of x86 alone.
func iopl() error { return named("iopl", unix.ENOSYS) }
