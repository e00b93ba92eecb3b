// SPDX-License-Identifier: Apache-2.0

package anomaly

import (
	"strings"
	"sync"
	"time"

	"github.com/Ignoramuss/orb8/internal/process"
)

const (
	// setupTime is how long a runtime may need between making a container's process
	// and starting its program. A start that was missed hides no longer.
	setupTime = time.Minute
	// firstTime is how long after its first process a container's first program may
	// have been made, where its pid does not tell.
	firstTime = 2 * time.Second
)

// containers tells what is done in a container by its runtime and what by the
// container itself.
//
// A runtime puts processes of its own into the container's cgroup, which make the
// namespaces, mount and drop rights until one of them starts the container's program.
// Each is the last one's child: these are the runtime's stages. Their executable was
// started outside of the container's file system, and the parent of the first one is
// outside of the container. Nobody inside can have the like: what is forked inside has an
// ancestor inside that is no stage; and where a process that came from outside (a
// container's first one, or one of kubectl exec) starts a file that goes by a runtime's
// name, it does so in the container's mount namespace and not in that of whom it comes
// from, and becomes an impostor, of which nothing comes that is a stage.
type containers struct {
	of func(cgroupID uint64) string

	mu        sync.Mutex
	impostors *lru[process.ID, struct{}]
	// firsts has the first process of each container that started a program.
	firsts *lru[string, process.ID]
}

func newContainers(of func(cgroupID uint64) string) *containers {
	return &containers{
		of:        of,
		impostors: newLRU[process.ID, struct{}](maxKeys),
		firsts:    newLRU[string, process.ID](maxKeys),
	}
}

// place fills in what the subject is to its container. It reports whether the
// container is the one to judge, rather than its runtime.
func (c *containers) place(s *Subject) bool {
	entered := 0 // so many ancestors are in the container's cgroups, from the parent on
	for entered < len(s.Ancestors) && c.isIn(s.Ancestors[entered], s.Process, s.Workload.ContainerID) {
		entered++
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	inside := entered // without those that are the runtime's
	if entered < len(s.Ancestors) {
		inside -= c.stages(s, entered)
	}
	if s.Entered = inside == 0 && len(s.Ancestors) > 0; inside > 0 {
		s.Inside, s.Outermost = s.Ancestors[0], s.Ancestors[inside-1]
	}
	anew := c.startsAnew(s, entered)
	if s.What == process.Exec {
		c.unmask(s, anew)
	}
	if anew || c.setsUp(s, inside, entered) {
		return false
	}
	if s.What == process.Exec {
		c.started(s)
	}
	return true
}

// isIn reports whether an ancestor of p is in p's container.
func (c *containers) isIn(ancestor, p *process.Process, container string) bool {
	return ancestor.CgroupID == p.CgroupID || c.of(ancestor.CgroupID) == container
}

// stages is how many of so many ancestors inside, from the outermost on, are a runtime's.
// One that was still that when it made the next one has been it all the time.
func (c *containers) stages(s *Subject, entered int) (n int) {
	for ; n < entered; n++ {
		below := s.Process
		if i := entered - 1 - n; i > 0 {
			below = s.Ancestors[i-1]
		}
		if !c.isStage(s.Ancestors[entered-1-n], below.Started) {
			break
		}
	}
	return n
}

// isStage reports whether a process whose ancestors inside all are stages is one too.
func (c *containers) isStage(p *process.Process, at int64) bool {
	return c.genuine(p, at) && hasRuntimesComm(p.Comm)
}

// genuine reports whether a process that comes from outside runs a container runtime,
// was not seen to have started it inside, and is young enough at a time to be setting up:
// of one that is older than the agent it is not known where it started what.
func (c *containers) genuine(p *process.Process, at int64) bool {
	return isRuntime(p) && at-p.Started < int64(setupTime) && c.impostors.get(p.ID) == nil
}

// startsAnew reports whether a runtime has started itself anew, before it enters the
// container's file system.
func (c *containers) startsAnew(s *Subject, entered int) bool {
	if s.What != process.Exec || !s.Entered || entered == len(s.Ancestors) || !c.genuine(s.Process, s.Time) ||
		s.Before != nil && !isRuntime(s.Before) {
		return false
	}
	is, outside := s.Process.NS.Mount, s.Ancestors[entered].NS.Mount
	return is != 0 && is == outside
}

// setsUp reports whether the process is the runtime's: a stage, or something that one has
// started that has not ended (hooks).
func (c *containers) setsUp(s *Subject, inside, entered int) bool {
	if inside < entered {
		if last := s.Ancestors[inside]; !last.Exited && s.Time-last.Started < int64(setupTime) {
			return true
		}
	}
	return s.Entered && s.What != process.Exec && c.isStage(s.Process, s.Time)
}

// unmask notes what a program makes of a process that comes from outside. That it has
// ended does not matter: others come from it.
func (c *containers) unmask(s *Subject, anew bool) {
	id := s.Process.ID
	switch {
	case !isRuntime(s.Process):
		c.impostors.remove(id)
	case s.Entered && !anew && c.impostors.get(id) == nil:
		c.impostors.add(id)
	}
}

// started tells where a program was started from that is not the runtime's.
func (c *containers) started(s *Subject) {
	p, container := s.Process, s.Workload.ContainerID
	if s.Origin = s.Inside; s.Origin == nil && s.Before != nil && !c.genuine(s.Before, s.Time) {
		s.Origin = s.Before
	}
	if !s.Entered {
		return
	}
	first := c.firsts.get(container)
	if first == nil {
		first = c.firsts.add(strings.Clone(container))
		if s.CgroupStart != 0 && p.Started-s.CgroupStart < int64(firstTime) {
			*first = p.ID
		}
	}
	s.First = *first == p.ID || s.Start != nil && s.Start.NSPID == 1
}

// isRuntime reports whether a process runs a container runtime, by the name of the
// file. Runtimes may run as a copy in memory, called NAME_cloned:PATH, or from a mount
// of the file alone that is nowhere in the tree: its path is then that of a root.
func isRuntime(p *process.Process) bool {
	if p.Exe.Path == "/" {
		return true
	}
	name := p.Exe.Name()
	if p.Exe.Memfd {
		name, _, _ = strings.Cut(strings.TrimPrefix(p.Exe.Path, "memfd:"), ":")
		name = strings.TrimSuffix(name, "_cloned")
	}
	return isRuntimesName(name)
}

func isRuntimesName(name string) bool {
	switch name {
	case "runc", "crun", "youki", "docker-runc", "sysbox-runc":
		return true
	}
	return false
}

// hasRuntimesComm reports whether the kernel's name of a process goes with a runtime:
// runc:[2:INIT], or the number of the file descriptor by which a copy was started. If
// it does not, the start of another program was missed.
func hasRuntimesComm(comm string) bool {
	name, _, _ := strings.Cut(comm, ":")
	return isRuntimesName(name) || name == "exe" || strings.Trim(name, "0123456789") == ""
}
