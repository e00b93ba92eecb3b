// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// spec says what a runtime makes of its process.
type spec struct {
	// Lower is the image, Dir an empty folder for what else a root file system takes.
	Lower, Dir string
	Volumes    []volume
	// Enter, if set, is a process to whose container the new one goes.
	Enter int
	// Capabilities that it keeps; nil for all.
	Capabilities []uintptr
	UID          uintptr
	// NoNewPrivileges: it cannot gain more.
	NoNewPrivileges bool
	Args            []string
}

// volume is mounted at Path. Source is a folder, or empty for a new one in memory.
type volume struct{ Source, Path string }

// ordinary are the capabilities that container runtimes leave to root.
func ordinary() []uintptr {
	return []uintptr{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW,
		unix.CAP_SETGID, unix.CAP_SETUID, unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE,
		unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
	}
}

// becomeContainer makes of this process, which is in the container's cgroup and, if it
// is to have one, its pid namespace, the container's: as runc init does. It returns
// only if it fails.
func becomeContainer(config string) error {
	var s spec
	if err := json.Unmarshal([]byte(config), &s); err != nil {
		return err
	}
	steps := []func(*spec) error{ownMounts, mountRoot, mountVolumes, changeRoot, restrict}
	if s.Enter != 0 {
		steps = []func(*spec) error{enter, restrict}
	}
	for _, step := range steps {
		if err := step(&s); err != nil {
			return err
		}
	}
	env := []string{"PATH=/bin", "HOME=/"}
	return fmt.Errorf("start %s: %w", s.Args[0], syscall.Exec(s.Args[0], s.Args, env))
}

func ownMounts(*spec) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	return mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

func mount(source, at, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		return fmt.Errorf("mount %q at %s: %w", kind, at, err)
	}
	return nil
}

func (s *spec) root() string { return filepath.Join(s.Dir, "root") }

// mountRoot mounts the image with a writable layer in memory, and what every container
// has of the kernel's.
func mountRoot(s *spec) error {
	if err := mount("tmpfs", s.Dir, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(s.Dir, name), 0o755); err != nil {
			return err
		}
	}
	root := s.root()
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%[2]s/upper,workdir=%[2]s/work", s.Lower, s.Dir)
	if err := mount("overlay", root, "overlay", 0, layers); err != nil {
		return err
	}
	const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return errors.Join(
		mount("proc", filepath.Join(root, "proc"), "proc", harmless, ""),
		mount("sysfs", filepath.Join(root, "sys"), "sysfs", harmless|unix.MS_RDONLY, ""),
		mount("tmpfs", filepath.Join(root, "dev"), "tmpfs", unix.MS_NOSUID, "mode=755"),
		devices(filepath.Join(root, "dev")),
		terminals(filepath.Join(root, "dev")))
}

func terminals(dir string) error {
	pts := filepath.Join(dir, "pts")
	if err := os.Mkdir(pts, 0o755); err != nil {
		return err
	}
	return errors.Join(
		mount("devpts", pts, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666"),
		os.Symlink("pts/ptmx", filepath.Join(dir, "ptmx")))
}

func devices(dir string) error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("mknod %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // which the umask was taken from
			return err
		}
	}
	return nil
}

func mountVolumes(s *spec) error {
	for _, v := range s.Volumes {
		at := filepath.Join(s.root(), v.Path)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		kind, flags := "tmpfs", uintptr(0)
		if v.Source != "" {
			kind, flags = "", unix.MS_BIND|unix.MS_REC
		}
		if err := mount(v.Source, at, kind, flags, ""); err != nil {
			return err
		}
	}
	return nil
}

func changeRoot(s *spec) error {
	if err := os.Chdir(s.root()); err != nil {
		return err
	}
	switch err := unix.PivotRoot(".", "."); {
	case errors.Is(err, unix.EINVAL):
		// The root is an initramfs, which stays: it is covered.
		if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return err
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("chroot: %w", err)
		}
	case err != nil:
		return fmt.Errorf("pivot_root: %w", err)
	default:
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("umount: %w", err)
		}
	}
	return os.Chdir("/")
}

// enter goes to the mounts of a container, as kubectl exec does.
func enter(s *spec) error {
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", s.Enter))
	if err != nil {
		return err
	}
	defer mounts.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(mounts.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("setns: %w", err)
	}
	return nil
}

// restrict takes rights from this thread, which is the one that starts the program.
func restrict(s *spec) error {
	for c := uintptr(0); s.Capabilities != nil; c++ {
		if slices.Contains(s.Capabilities, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // there are no more
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if s.UID != 0 {
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(call, s.UID, s.UID, s.UID); errno != 0 {
				return fmt.Errorf("become user %d: %w", s.UID, errno)
			}
		}
	}
	if s.NoNewPrivileges {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}
