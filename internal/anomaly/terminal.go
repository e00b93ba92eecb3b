// SPDX-License-Identifier: Apache-2.0

package anomaly

import "github.com/Ignoramuss/orb8/internal/process"

// terminal tells where the terminal of a program that is being started is from. It comes
// after place. What descends from a shell with a terminal is that shell's session.
func (c *containers) terminal(s *Subject) Terminal {
	if s.Start == nil || !s.Start.TTY || s.Before != nil && s.Before.TTY && shell(s.Before) != "" {
		return 0
	}
	if s.Inside == nil {
		if s.Entered && !s.First {
			return BroughtIn
		}
		return 0
	}
	outermost := 0
	for i, p := range s.Ancestors {
		if p.TTY && shell(p) != "" || isPackageManager(&p.Exe) {
			return 0
		}
		if p == s.Outermost {
			outermost = i
			break
		}
	}
	switch {
	case outermost+1 == len(s.Ancestors): // where it is from is not known
		return 0
	case !c.isFirst(s.Outermost, s.Workload.ContainerID, s.CgroupStart):
		return BroughtIn
	case !s.Outermost.TTY:
		return OpenedInside
	}
	return 0
}

// isPackageManager reports whether a program is dpkg, of the image: apt opens a terminal
// for it, on which packages' scripts run.
func isPackageManager(e *process.Executable) bool {
	return e.Name() == "dpkg" && !e.Upper && !e.Memfd && !e.Deleted
}

// isFirst reports whether a process that came from outside is the container's first one:
// the one that was seen to be or, in a container that is older than the agent, one as old
// as the container. Where nothing is known it is.
func (c *containers) isFirst(p *process.Process, container string, cgroupStart int64) bool {
	if p.NSPID == 1 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.firsts.get(container); first != nil && *first != (process.ID{}) {
		return *first == p.ID
	}
	return cgroupStart == 0 || p.Started-cgroupStart < int64(firstTime)
}
