// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Ignoramuss/orb8/internal/loss"
)

func id(pid uint32) ID { return ID{pid, uint64(pid) * 1000} }

func fork(pid, parent uint32) *Event {
	return &Event{What: Fork, Process: Process{ID: id(pid), Parent: id(parent), CgroupID: 7, Started: int64(pid)}}
}

func exec(pid, parent uint32, path string, args ...string) *Event {
	e := fork(pid, parent)
	e.What, e.Time = Exec, int64(pid)+5
	e.Process.Exe, e.Process.Args = Executable{Path: path}, args
	return e
}

func exit(pid, parent uint32) *Event {
	e := fork(pid, parent)
	e.What, e.End = Exit, &End{Code: 3}
	return e
}

func newTable(t *testing.T, max int) (*Table, *loss.Counters) {
	t.Helper()
	losses := new(loss.Counters)
	return NewTable(Config{Max: max, Losses: losses}), losses
}

func chain(s *Step) string {
	var all []string
	for _, a := range s.Ancestors {
		all = append(all, fmt.Sprintf("%d:%s", a.PID, a.Exe.Path))
	}
	return strings.Join(all, " ")
}

func TestTTY(t *testing.T) {
	tab, _ := newTable(t, 0)
	seen := &Event{What: Seen, Process: Process{ID: id(1), Exe: Executable{Path: "/init"}}, Start: &Start{TTY: true}}
	tab.Apply(seen)
	tab.Apply(fork(2, 1))
	tab.Apply(fork(3, 1))
	started := exec(3, 1, "/bin/daemon")
	started.Start = &Start{}
	tab.Apply(started)
	started = exec(4, 3, "/bin/sh")
	started.Start = &Start{TTY: true}
	if s := tab.Apply(started); s.Ancestors[0].TTY || !s.Ancestors[1].TTY {
		t.Errorf("terminals of the ancestors: %+v", s.Ancestors)
	}
	tab.Apply(fork(5, 6))
	tab.Apply(&Event{What: Seen, Process: Process{ID: id(5), Exe: Executable{Path: "/bin/sh"}}, Start: &Start{TTY: true}})
	for pid, want := range map[uint32]bool{1: true, 2: true, 3: false, 4: true, 5: true} {
		if got := tab.Find(id(pid)).TTY; got != want {
			t.Errorf("process %d has a terminal: %v", pid, got)
		}
	}
}

func TestAncestry(t *testing.T) {
	tab, _ := newTable(t, 0)
	if s := tab.Apply(&Event{What: Seen, Process: Process{ID: id(1), CgroupID: 7, Exe: Executable{Path: "/init"}}}); s != nil {
		t.Errorf("a process that was there: %+v", s)
	}
	if s := tab.Apply(fork(10, 1)); s.Before != nil || s.Process.Exe.Path != "/init" {
		t.Errorf("a fork like any other: %+v", s)
	}
	if s := tab.Apply(exec(10, 1, "/bin/sh", "sh")); chain(s) != "1:/init" || s.Before.Exe.Path != "/init" {
		t.Errorf("exec: ancestors %q, before %+v", chain(s), s.Before)
	}
	tab.Apply(fork(11, 10))
	tab.Apply(fork(12, 11))
	tab.Apply(exit(11, 10))
	// The kernel has given it to another parent by now.
	s := tab.Apply(exec(12, 1, "/bin/ls", "ls", "-l"))
	if chain(s) != "11:/bin/sh 10:/bin/sh 1:/init" || !slices.Equal(s.Process.Args, []string{"ls", "-l"}) {
		t.Errorf("exec of an orphan: ancestors %q, process %+v", chain(s), s.Process)
	}
	if !s.Ancestors[0].Exited || s.Ancestors[1].Exited || s.Process.Exited {
		t.Error("it is not known which have ended")
	}
	s = tab.Apply(exit(12, 1))
	if s.Process.Exe.Path != "/bin/ls" || s.End.Code != 3 || !s.Process.Exited {
		t.Errorf("exit: %+v", s.Process)
	}
	if p := tab.Find(id(10)); p == nil || p.Exe.Path != "/bin/sh" {
		t.Errorf("process 10 is %+v", p)
	}
	if n := tab.Len(); n != 2 {
		t.Errorf("%d processes, want 2", n)
	}
}

func TestPidComesAgain(t *testing.T) {
	tab, _ := newTable(t, 0)
	tab.Apply(exec(10, 1, "/bin/old"))
	tab.Apply(exit(10, 1))
	again := fork(10, 20)
	again.Process.Start++
	tab.Apply(again)
	late := exec(11, 10, "/bin/child")
	if s := tab.Apply(late); chain(s) != "10:/bin/old" {
		t.Errorf("a child of the first: ancestors %q", chain(s))
	}
	if p := tab.Find(again.Process.ID); p.Start != again.Process.Start || p.Exe.Path != "" {
		t.Errorf("the pid's process is %+v", p)
	}
	tab.Sweep(time.Now().Add(time.Hour))
	if p := tab.Find(again.Process.ID); p == nil || p.Start != again.Process.Start || tab.Find(id(10)) != nil {
		t.Errorf("after the first was forgotten the pid's process is %+v", p)
	}
}

func TestRightsChange(t *testing.T) {
	tab, _ := newTable(t, 0)
	user := exec(10, 1, "/bin/app")
	user.Process.Creds = Creds{UID: 1000, EUID: 1000}
	tab.Apply(user)
	same := fork(11, 10)
	same.Process.Creds = user.Process.Creds
	if s := tab.Apply(same); s.Before != nil {
		t.Errorf("a fork with its parent's rights: %+v", s)
	}
	if s := tab.Apply(fork(12, 10)); s == nil || s.Before.EUID != 1000 || s.Process.EUID != 0 {
		t.Errorf("a fork with more rights: %+v", s)
	}
	asks := exec(11, 10, "")
	asks.What = Moved
	s := tab.Apply(asks)
	if s.Before == nil || s.Before.EUID != 1000 || s.Process.EUID != 0 || s.Process.Exe.Path != "/bin/app" {
		t.Errorf("moved with more rights: before %+v, process %+v", s.Before, s.Process)
	}
	if s := tab.Apply(asks); s.Before != nil {
		t.Errorf("the same again: before %+v", s.Before)
	}
}

func TestCgroups(t *testing.T) {
	tab, _ := newTable(t, 0)
	tab.Apply(fork(100, 1))
	moved := fork(100, 1)
	moved.What, moved.Process.CgroupID = Moved, 9
	if s := tab.Apply(moved); s.From != 7 || s.CgroupStart != 100 || s.Process.CgroupID != 9 {
		t.Errorf("moved: from %d, cgroup begins %d", s.From, s.CgroupStart)
	}
	later := exec(200, 100, "/bin/app")
	later.Process.CgroupID = 9
	if s := tab.Apply(later); s.CgroupStart != 100 {
		t.Errorf("cgroup begins %d, want 100", s.CgroupStart)
	}
	gone := exit(200, 100)
	gone.Process.CgroupID = 9
	tab.Apply(gone)
	tab.Sweep(time.Now())
	later.Process.ID = id(300)
	if s := tab.Apply(later); s.CgroupStart != 100 {
		t.Errorf("a cgroup with a process begins %d, want 100", s.CgroupStart)
	}
	for _, pid := range []uint32{100, 300} {
		gone.Process.ID = id(pid)
		tab.Apply(gone)
	}
	tab.Sweep(time.Now())
	if len(tab.cgroups) != 0 {
		t.Errorf("%d cgroups are kept", len(tab.cgroups))
	}
}

func TestSeededLater(t *testing.T) {
	tab, _ := newTable(t, 0)
	tab.Apply(fork(10, 1)) // between attaching and seeding
	seen := exec(10, 1, "/bin/app", "app")
	seen.What = Seen
	tab.Apply(seen)
	if p := tab.Find(id(10)); p.Exe.Path != "/bin/app" || p.Seeded {
		t.Errorf("forked, then seen: %+v", p)
	}
	tab.Apply(exec(11, 1, "/bin/new"))
	old := exec(11, 1, "/bin/old")
	old.What = Seen
	tab.Apply(old)
	if p := tab.Find(id(11)); p.Exe.Path != "/bin/new" {
		t.Errorf("what was seen takes the place of what was told: %+v", p)
	}
}

// However long a line of processes that each fork the next and end, what is kept is
// bounded.
func TestLongLineIsBounded(t *testing.T) {
	tab, _ := newTable(t, 64)
	for pid := uint32(2); pid < 5000; pid++ {
		tab.Apply(fork(pid, pid-1))
		tab.Apply(exit(pid-1, pid-2))
	}
	s := tab.Apply(exec(5000, 4999, "/bin/app"))
	if len(s.Ancestors) != maxAncestors {
		t.Errorf("%d ancestors, want %d", len(s.Ancestors), maxAncestors)
	}
	n := 0
	for e := tab.entries[id(5000)]; e != nil; e = e.parent {
		n++
	}
	if n > maxLine+2 {
		t.Errorf("%d processes hang on the last", n)
	}
}

// The same where many of the line live at a time.
func TestLongLineOfLivingIsBounded(t *testing.T) {
	tab, _ := newTable(t, 0)
	const alive = 3 * maxLine
	for pid := uint32(2); pid < 5000; pid++ {
		tab.Apply(fork(pid, pid-1))
		if pid > alive {
			tab.Apply(exit(pid-alive, pid-alive-1))
		}
		// One in the middle, of whose line much was cut off.
		if s := tab.Apply(exec(pid-pid%alive/2, 0, "/bin/app")); pid > 2*alive && len(s.Ancestors) != maxAncestors {
			t.Fatalf("%d ancestors, want %d", len(s.Ancestors), maxAncestors)
		}
		if pid%100 == 0 {
			tab.Sweep(time.Now().Add(time.Hour))
		}
	}
	for _, e := range tab.entries {
		n := 0
		for ; e != nil; e = e.parent {
			n++
		}
		if n > maxLine+2 {
			t.Fatalf("%d processes hang on one", n)
		}
	}
}

// Seeds come in any order: after pids began anew a child's may be lower than its
// parent's.
func TestParentSeenLater(t *testing.T) {
	tab, _ := newTable(t, 0)
	child := exec(500, 30000, "/app")
	parent := exec(30000, 1, "/shim")
	for _, e := range []*Event{child, parent} {
		e.What = Seen
		tab.Apply(e)
	}
	child.What = Exec
	if s := tab.Apply(child); chain(s) != "30000:/shim" {
		t.Errorf("ancestors %q", chain(s))
	}
}

// What comes after a process's end does not make it live again.
func TestEndedStaysSo(t *testing.T) {
	tab, _ := newTable(t, 0)
	tab.Apply(fork(100, 1))
	tab.Apply(exit(100, 1))
	moved := fork(100, 1)
	moved.What, moved.Process.CgroupID = Moved, 9
	if s := tab.Apply(moved); s != nil {
		t.Errorf("moved after its end: %+v", s)
	}
	tab.Sweep(time.Now().Add(time.Hour))
	if n, c := len(tab.entries), len(tab.cgroups); n != 0 || c != 0 {
		t.Errorf("%d processes and %d cgroups are kept", n, c)
	}
}

// The kernel does not know the namespaces of a process that is ending.
func TestNamespacesStay(t *testing.T) {
	tab, _ := newTable(t, 0)
	app := exec(10, 1, "/bin/app")
	app.Process.NS = Namespaces{Mount: 1, PID: 2, Net: 3}
	tab.Apply(app)
	end := exit(10, 1)
	end.Process.NS.PID = 4
	if s := tab.Apply(end); s.Process.NS != (Namespaces{Mount: 1, PID: 4, Net: 3}) {
		t.Errorf("namespaces %+v", s.Process.NS)
	}
}

// In which namespaces a program was started is known also after it has left them.
func TestExecNamespaces(t *testing.T) {
	tab, _ := newTable(t, 0)
	app, home, other := exec(10, 1, "/bin/app"), Namespaces{Mount: 1, PID: 2, Net: 3}, Namespaces{Mount: 4, PID: 5, Net: 6}
	app.Process.NS = home
	tab.Apply(app)
	asks := *app
	asks.What, asks.Process.NS = Moved, other
	if s := tab.Apply(&asks); s.Process.NS != other || s.Process.ExecNS != home {
		t.Errorf("moved: %+v", s.Process)
	}
	child := fork(11, 10)
	child.Process.NS = other
	if s := tab.Apply(child); s.Process.NS != other || s.Process.ExecNS != home {
		t.Errorf("its child: %+v", s.Process)
	}
	again := exec(11, 10, "/bin/sh")
	again.Process.NS = other
	if s := tab.Apply(again); s.Process.ExecNS != other || s.Before.ExecNS != home {
		t.Errorf("another program: %+v", s.Process)
	}
}

func TestNothingKnownFromBefore(t *testing.T) {
	tab, _ := newTable(t, 0)
	if s := tab.Apply(exec(100, 1, "/bin/app")); s.Before != nil {
		t.Errorf("before %+v", s.Before)
	}
	if s := tab.Apply(exec(100, 1, "/bin/other")); s.Before == nil || s.Before.Exe.Path != "/bin/app" {
		t.Errorf("the second: before %+v", s.Before)
	}
}

// A process whose end was lost ends when its pid is another one's.
func TestEndLostAndPidComesAgain(t *testing.T) {
	tab, _ := newTable(t, 0)
	tab.Apply(fork(10, 1))
	again := fork(10, 1)
	again.Process.Start++
	again.Process.CgroupID = 8
	tab.Apply(again)
	if p := tab.Find(id(10)); !p.Exited || tab.Len() != 1 {
		t.Errorf("the first: %+v; %d processes", p, tab.Len())
	}
	late := exec(10, 1, "/bin/late")
	if s := tab.Apply(late); !s.Process.Exited || tab.Len() != 1 {
		t.Errorf("the first again: %+v; %d processes", s.Process, tab.Len())
	}
	older := fork(10, 1)
	older.Process.Start -= 5
	tab.Apply(older)
	if p := tab.Find(older.Process.ID); !p.Exited || tab.Len() != 1 {
		t.Errorf("an older one: %+v; %d processes", p, tab.Len())
	}
	tab.Sweep(time.Now().Add(time.Hour))
	if len(tab.cgroups) != 1 || len(tab.entries) != 1 || len(tab.latest) != 1 {
		t.Errorf("%d cgroups, %d processes, %d pids", len(tab.cgroups), len(tab.entries), len(tab.latest))
	}
}

// After events were lost, those end that are not there any more and stay so.
func TestEndsLost(t *testing.T) {
	losses, now := new(loss.Counters), time.Now()
	asked, gone := 0, map[uint32]bool{}
	tab := NewTable(Config{Losses: losses, Alive: func(id ID) bool { asked++; return !gone[id.PID] }})
	for pid := uint32(10); pid < 14; pid++ {
		tab.Apply(fork(pid, 1))
	}
	sweep := func() {
		tab.Sweep(now)
		now = now.Add(askEvery)
	}
	sweep()
	if asked != 0 {
		t.Fatalf("asked %d times while nothing was lost", asked)
	}
	losses.Add(loss.ExecRingFull, 2)
	gone[10], gone[11], gone[12] = true, true, true
	sweep()
	if tab.Len() != 4 {
		t.Errorf("%d processes: an end may have to be read yet", tab.Len())
	}
	if s := tab.Apply(exit(12, 1)); s.End == nil || s.Process.Exited != true { // it had
		t.Errorf("its end: %+v", s)
	}
	sweep()
	if tab.Len() != 1 || !tab.Find(id(10)).Exited {
		t.Errorf("%d processes, want 1", tab.Len())
	}
	now = now.Add(askFor)
	asked = 0
	sweep()
	if asked != 0 {
		t.Errorf("asked %d times long after", asked)
	}
	gone[13] = true
	losses.Add(loss.ExecRingFull, 1)
	sweep()
	sweep()
	now = now.Add(time.Hour)
	sweep()
	if len(tab.entries) != 0 || len(tab.cgroups) != 0 {
		t.Errorf("%d processes and %d cgroups are kept", len(tab.entries), len(tab.cgroups))
	}
}

// In a full table those go first whose end was lost, once it is known.
func TestFullOfGone(t *testing.T) {
	const room = 20
	losses, now := new(loss.Counters), time.Now()
	tab := NewTable(Config{Max: room, Losses: losses, Alive: func(id ID) bool { return id.PID > room }})
	for pid := uint32(1); pid <= room; pid++ {
		tab.Apply(fork(pid, 0))
	}
	tab.Apply(fork(room+1, 0)) // nobody knows yet
	tab.Sweep(now)
	for pid := uint32(room + 2); pid <= 2*room; pid++ {
		tab.Apply(fork(pid, 0))
	}
	for pid := uint32(room + 1); pid <= 2*room; pid++ {
		if tab.Find(id(pid)) == nil {
			t.Errorf("process %d is forgotten", pid)
		}
	}
	if n := losses.Get(loss.ProcessTableFull); n != 1 || tab.Len() != room {
		t.Errorf("%d lost, %d processes; want 1 and %d", n, tab.Len(), room)
	}
}

func TestFull(t *testing.T) {
	const room = 100
	tab, losses := newTable(t, room)
	for pid := uint32(1); pid <= room; pid++ {
		tab.Apply(fork(pid, 0))
	}
	for pid := uint32(1); pid <= 10; pid++ {
		tab.Apply(exit(pid, 0))
	}
	for pid := uint32(1001); pid <= 1010; pid++ {
		tab.Apply(fork(pid, 0))
	}
	if n := losses.Get(loss.ProcessTableFull); n != 0 || tab.Len() != room {
		t.Errorf("%d lost while ended ones were there, %d processes", n, tab.Len())
	}
	tab.Apply(fork(2000, 0))
	if n := losses.Get(loss.ProcessTableFull); n != 1 || len(tab.entries) != room {
		t.Errorf("%d lost, %d kept; want 1 and %d", n, len(tab.entries), room)
	}
}

// A random life of many processes: the table agrees with a plain model.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	tab, _ := newTable(t, 0)
	type proc struct {
		parent uint32
		path   string
		alive  bool
	}
	model := map[uint32]*proc{1: {alive: true, path: "/init"}}
	tab.Apply(exec(1, 0, "/init"))
	alive := []uint32{1}
	for next := uint32(2); next < 3000; {
		pick := alive[rng.IntN(len(alive))]
		switch rng.IntN(3) {
		case 0:
			tab.Apply(fork(next, pick))
			model[next] = &proc{pick, model[pick].path, true}
			alive = append(alive, next)
			next++
		case 1:
			path := fmt.Sprintf("/bin/%d", rng.Uint32())
			s := tab.Apply(exec(pick, model[pick].parent, path))
			model[pick].path = path
			var want []string
			for up := model[pick].parent; up != 0 && len(want) < maxAncestors; up = model[up].parent {
				want = append(want, fmt.Sprintf("%d:%s", up, model[up].path))
			}
			if got := chain(s); got != strings.Join(want, " ") {
				t.Fatalf("ancestors of %d are %q, want %q", pick, got, want)
			}
		case 2:
			if pick == 1 {
				continue
			}
			tab.Apply(exit(pick, model[pick].parent))
			model[pick].alive = false
			alive = slices.DeleteFunc(alive, func(p uint32) bool { return p == pick })
		}
	}
	if tab.Len() != len(alive) {
		t.Errorf("%d processes live, want %d", tab.Len(), len(alive))
	}
}

func BenchmarkTable(b *testing.B) {
	tab := NewTable(Config{Losses: new(loss.Counters)})
	tab.Apply(exec(1, 0, "/init"))
	b.ReportAllocs()
	for pid := uint32(2); b.Loop(); pid++ {
		tab.Apply(fork(pid, 1))
		tab.Apply(exec(pid, 1, "/bin/true"))
		tab.Apply(exit(pid, 1))
		if pid%5000 == 0 {
			tab.Sweep(time.Now().Add(time.Hour))
		}
	}
}

// TestExecutable: what a process ran when it was seen is known for sure, or not said.
func TestExecutable(t *testing.T) {
	tab, losses := newTable(t, 0)
	sees := func(pid uint32, comm string, first, time int64, want string, soon bool) {
		t.Helper()
		got, later := tab.Executable(Sighting{PID: pid, Comm: comm, First: first, Time: time})
		if got != want || later != soon {
			t.Errorf("process %d, %s, at %d to %d: %q, soon %v; want %q, %v", pid, comm, first, time, got, later, want, soon)
		}
	}
	of := func(e *Event, comm string, at int64) *Event {
		e.Process.Comm, e.Process.Started, e.Time = comm, at, at
		if e.What == Exec {
			e.Process.Execed = at
		}
		return e
	}
	tab.Apply(of(fork(1, 0), "init", 1))
	sees(1, "init", 100, 100, "", false) // nobody tells how far it has been read
	tab.Advance(1000)
	tab.Apply(of(fork(10, 1), "sh", 100))
	tab.Apply(of(exec(10, 1, "/bin/sh"), "sh", 110))
	sees(10, "sh", 200, 300, "/bin/sh", false)
	sees(10, "sh", 50, 300, "", false)           // it was another one's pid then
	sees(10, "sh", 105, 300, "/bin/sh", false)   // it is called so since it started the shell
	sees(10, "old", 105, 300, "", false)         // it was called otherwise before
	sees(10, "curl", 900, 1100, "", true)        // it may have started something else
	sees(10, "curl", 200, 300, "/bin/sh", false) // it has not: it has another name
	sees(11, "curl", 900, 900, "", false)        // not known, and would be
	sees(11, "curl", 900, 1000, "", true)

	losses.Add(loss.ExecRingFull, 1)
	sees(10, "curl", 200, 300, "", false) // it may have started something else, and nobody says so
	sees(10, "sh", 200, 300, "/bin/sh", false)
	tab.Apply(of(exec(10, 1, "/bin/curl"), "curl", 400))
	sees(10, "other", 500, 600, "/bin/curl", false)

	tab.Apply(of(exit(10, 1), "curl", 500))
	sees(10, "curl", 450, 700, "/bin/curl", false) // its socket is told of after its end
	sees(10, "curl", 600, 700, "", false)          // another one's
	sees(10, "curl", 600, 1100, "", true)
	tab.Advance(0)
	sees(10, "curl", 450, 1100, "", false)
}
