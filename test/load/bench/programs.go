// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The names of orb8's programs as the kernel keeps them: 15 characters.
const (
	progOps        = "tcp_ops"
	progSetState   = "tcp_set_state"
	progRetransmit = "tcp_retransmit"
	progSendReset  = "tcp_send_reset"
	progGotReset   = "tcp_receive_res"
	progSample     = "tcp_sample"
	progIngress    = "packet_ingress"
	progEgress     = "packet_egress"
	progSockCreate = "packet_sock_cre"
	progEmptyIn    = "bench_empty_in"
	progEmptyOut   = "bench_empty_out"
)

func ownProgram(name string) bool {
	switch name {
	case progOps, progSetState, progRetransmit, progSendReset, progGotReset, progSample,
		progIngress, progEgress, progSockCreate, progEmptyIn, progEmptyOut,
		"process_started", "process_forked", "process_ended", "process_moved", "syscall_enter", "syscall_exit":
		return true
	}
	return false
}

// programs holds orb8's loaded programs by name; several of one name if orb8
// runs elsewhere on this machine too.
type programs map[string][]*ebpf.Program

func findPrograms() (programs, error) {
	found := make(programs)
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("list BPF programs: %w", err), found.close())
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // unloaded since
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open BPF program %d: %w", id, err), found.close())
		}
		info, err := p.Info()
		if err != nil || !ownProgram(info.Name) {
			_ = p.Close()
			continue
		}
		found[info.Name] = append(found[info.Name], p)
	}
}

func (ps programs) close() error {
	var errs []error
	for _, same := range ps {
		for _, p := range same {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// foreign reports whether orb8 runs elsewhere too.
func (ps programs) foreign() bool {
	for _, same := range ps {
		if len(same) > 1 {
			return true
		}
	}
	return false
}

// ran reports whether the kernel has kept statistics of any program's runs.
func (ps programs) ran() (bool, error) {
	for _, same := range ps {
		for _, p := range same {
			s, err := p.Stats()
			if err != nil {
				return false, err
			}
			if s.RunCount > 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// runs is what the kernel says of a program: how often and how long it ran.
type runs struct {
	count uint64
	time  time.Duration
}

func (ps programs) runs() (map[string]runs, error) {
	all := make(map[string]runs, len(ps))
	for name, same := range ps {
		s, err := same[0].Stats()
		if err != nil {
			return nil, fmt.Errorf("read the statistics of %s: %w", name, err)
		}
		all[name] = runs{s.RunCount, s.Runtime}
	}
	return all, nil
}

// waitUntilAlone returns once no program of orb8 is loaded. Programs that were
// detached go only after a grace period.
func waitUntilAlone(patience time.Duration) error {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		found, err := findPrograms()
		if err != nil {
			return err
		}
		n := len(found)
		if err := found.close(); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if time.Since(begin) > patience {
			return errors.New("orb8 runs on this machine already: stop it to compare with and without it")
		}
	}
}

// attachEmpty attaches a program that does nothing to packets on their way in
// and out. What that costs is the hooks' cost; what the kernel's statistics say
// of it is their own.
func attachEmpty(cgroupRoot string) (_ io.Closer, err error) {
	var c closers
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, at := range []struct {
		name string
		hook ebpf.AttachType
	}{
		{progEmptyIn, ebpf.AttachCGroupInetIngress},
		{progEmptyOut, ebpf.AttachCGroupInetEgress},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: at.name, Type: ebpf.CGroupSKB, AttachType: at.hook,
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
			License:      "Dual BSD/GPL",
		})
		if err != nil {
			return nil, fmt.Errorf("load the empty program: %w", err)
		}
		c = append(c, prog)
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroupRoot, Attach: at.hook, Program: prog})
		if err != nil {
			return nil, fmt.Errorf("attach the empty program: %w", err)
		}
		c = append(c, l)
	}
	return c, nil
}

type closers []io.Closer

// Close closes the last one first.
func (c closers) Close() error {
	var errs []error
	for i := len(c) - 1; i >= 0; i-- {
		errs = append(errs, c[i].Close())
	}
	return errors.Join(errs...)
}

func enableStats() (io.Closer, error) {
	c, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("turn on the kernel's statistics of BPF programs: %w", err)
	}
	return c, nil
}
