// SPDX-License-Identifier: Apache-2.0

package main

import "golang.org/x/sys/unix"

func iopl() error { return named("iopl", unix.Iopl(3)) }
