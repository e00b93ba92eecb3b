// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/Ignoramuss/orb8/internal/procnet"
)

// port checks whether the agent could listen on localhost:port, and who holds
// the port if not. flag is what the user can change.
func (h *host) port(port uint16, flag string) Finding {
	l, held, err := procnet.Loopback(h.Proc, port)
	if err != nil {
		return unreadable(err, info("not checked: "+err.Error(), ""))
	}
	if !held {
		return ok(fmt.Sprintf("port %d is free", port))
	}
	pid, comm := h.owner(l.Inode)
	switch {
	case comm == "orb8":
		return ok(fmt.Sprintf("an orb8 agent (pid %s) listens on port %d", pid, port))
	case pid == "":
		return warn(fmt.Sprintf("port %d is taken by a process that this user cannot look up", port),
			fmt.Sprintf("Find it with: sudo ss -ltnp 'sport = :%d'. If it is not orb8, stop it or start the agent with %s.", port, flag))
	}
	return warn(fmt.Sprintf("port %d is taken by %s (pid %s)", port, comm, pid),
		fmt.Sprintf("Stop %s, or start the agent with %s.", comm, flag))
}

// owner finds a process that has a socket open; both results are empty if none
// can be seen.
func (h *host) owner(inode uint64) (pid, comm string) {
	// Processes come and go meanwhile, so errors mean no more than "not that one".
	fds, _ := filepath.Glob(filepath.Join(h.Proc, "[1-9]*", "fd", "*"))
	socket := fmt.Sprintf("socket:[%d]", inode)
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != socket {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		comm, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		return filepath.Base(process), strings.TrimSpace(string(comm))
	}
	return "", ""
}
