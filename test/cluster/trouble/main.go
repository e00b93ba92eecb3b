// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command trouble does in a container what rules are about, and what only looks like
// it, for tests. Nothing that it does reaches beyond its container:
//
//	trouble serve                 runs the others as its children: /run?arg=NAME&arg=...
//	                              on port 7000, and answers "exit" to whoever connects
//	                              to port 7001; it says where it listens
//	trouble wait                  says "waiting" and does nothing
//	trouble NAME ARGUMENT...      one of the deeds below; it ends with status 1, and
//	                              says why, where the kernel refused
package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// deed is what one command does.
type deed func(args []string) error

// deeds are all commands by name.
func deeds() map[string]deed {
	all := map[string]deed{"serve": serve, "wait": sayAndWait, "nothing": nothing, "calls": calls}
	for _, some := range []map[string]deed{programs(), shells(), namespaces(), mounts(), kernel(), harmful(), processes()} {
		maps.Copy(all, some)
	}
	return all
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintf(os.Stderr, "trouble: want one of %s\n", strings.Join(slices.Sorted(maps.Keys(deeds())), ", "))
		os.Exit(2)
	}
	do, ok := deeds()[os.Args[1]]
	if !ok {
		fmt.Fprintf(os.Stderr, "trouble: no deed %q\n", os.Args[1])
		os.Exit(2)
	}
	if err := do(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "trouble: %v\n", err)
		os.Exit(1)
	}
}

func sayAndWait([]string) error {
	fmt.Println("waiting")
	return wait(nil)
}

func wait([]string) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
	return nil
}

func nothing([]string) error { return nil }

// want returns an error unless there are exactly as many arguments as names.
func want(args []string, names ...string) error {
	if len(args) != len(names) {
		return errors.New("want the arguments " + strings.Join(names, " "))
	}
	return nil
}
