// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/hex"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Container runtimes as they are named in the API.
const (
	RuntimeContainerd = "containerd"
	RuntimeCRIO       = "cri-o"
	RuntimeDocker     = "docker"
	RuntimePodman     = "podman"
)

// CgroupInfo is what a cgroup's path alone says of its owner. An empty field
// means that the path does not tell.
type CgroupInfo struct {
	// Runtime is one of the Runtime constants. It stays empty below a cgroupfs
	// pod, where containerd and Docker write the same path.
	Runtime string
	// ContainerID is 64 lower-case hexadecimal digits. A pod's sandbox (pause)
	// looks like any other container.
	ContainerID string
	// PodUID has dashes. Static pods have the kubelet's hash of their manifest
	// here: 32 digits without dashes.
	PodUID string
	// Unit is the systemd service or scope, unescaped. It is set only where
	// there is neither a container nor a pod, and not for login sessions, which
	// are named by what runs in them.
	Unit string
}

// ParseCgroup reads a path below the cgroup2 root, or one as /proc/<pid>/cgroup
// shows it, with elements of .. where it leads out of a cgroup namespace. Any
// string is accepted.
//
// Cgroups nest. Whatever a container makes inside itself belongs to that
// container, so the outermost container names the workload, also for
// Docker-in-Docker: it is the one that the host's runtime can be asked for. A
// pod changes that, because nodes themselves may be containers (kind, k3d): the
// innermost pod counts, and with it the outermost container inside that pod.
func ParseCgroup(path string) CgroupInfo {
	info, _ := parseCgroup(path)
	return info
}

// parseCgroup also returns the part of path above the innermost pod, where an
// enclosing pod may be found, or an empty string without a pod.
func parseCgroup(path string) (info CgroupInfo, above string) {
	elems := parseElements(path)
	pod := len(elems) - 1
	for pod >= 0 && elems[pod].podUID == "" {
		pod--
	}
	if pod >= 0 {
		info.PodUID = elems[pod].podUID
		above = path[:elems[pod].start]
		elems = elems[pod:]
	}
	for _, e := range elems {
		if e.containerID != "" {
			info.ContainerID, info.Runtime = e.containerID, e.runtime
			return info, above
		}
	}
	if pod < 0 {
		info.Unit = innermostUnit(elems)
	}
	return info, above
}

// element is one directory of a cgroup path.
type element struct {
	name  string
	start int // offset of name in the path
	// monitor marks the runtime's own process beside a container.
	monitor                      bool
	podUID, containerID, runtime string
}

func parseElements(path string) []element {
	var elems []element
	parent := ""
	for start := 0; start < len(path); {
		name, _, _ := strings.Cut(path[start:], "/")
		if name != "" && name != "." && name != ".." {
			e := parseElement(name, parent)
			e.start = start
			elems = append(elems, e)
			parent = name
		}
		start += len(name) + 1
	}
	return elems
}

func parseElement(name, parent string) element {
	e := element{name: name}
	// SLICE:PREFIX:ID is what the systemd driver hands to a runtime; one that
	// runs with the cgroupfs driver makes a directory of just that name.
	if slice, rest, ok := strings.Cut(name, ":"); ok {
		e.podUID = parsePod(slice)
		if prefix, id, ok := strings.Cut(rest, ":"); ok {
			e.setContainer(prefix, id)
		}
		return e
	}
	if e.podUID = parsePod(name); e.podUID != "" {
		return e
	}
	base, scope := strings.CutSuffix(name, ".scope")
	if isContainerID(base) {
		e.setBareContainer(base, parent)
		return e
	}
	dash := strings.LastIndexByte(base, '-')
	if dash < 0 {
		return e
	}
	// Runtimes with the systemd driver make PREFIX-ID.scope, with any prefix;
	// without .scope only known prefixes count.
	if prefix := base[:dash]; scope || knownPrefix(prefix) {
		e.setContainer(prefix, base[dash+1:])
	}
	return e
}

// setContainer takes id for a container if it is one and is not that of a
// monitor's container.
func (e *element) setContainer(prefix, id string) {
	if !isContainerID(id) {
		return
	}
	if strings.HasSuffix(prefix, "conmon") {
		e.monitor = true
		return
	}
	e.containerID, e.runtime = id, runtimeOfPrefix(prefix)
}

// setBareContainer takes a directory named by an id alone for a container: the
// cgroupfs driver's way, where only the parent may tell the runtime.
func (e *element) setBareContainer(id, parent string) {
	switch parent {
	case "libpod_parent": // a Podman pod, its containers are below
		return
	case "docker", "moby": // moby is Docker's namespace in containerd
		e.runtime = RuntimeDocker
	case "default", "k8s.io": // containerd's own namespaces
		e.runtime = RuntimeContainerd
	}
	e.containerID = id
}

func knownPrefix(prefix string) bool {
	return runtimeOfPrefix(prefix) != "" || prefix == "crio-conmon" || prefix == "libpod-conmon"
}

func runtimeOfPrefix(prefix string) string {
	switch prefix {
	case "cri-containerd", "nerdctl", "containerd":
		return RuntimeContainerd
	case "crio":
		return RuntimeCRIO
	case "docker":
		return RuntimeDocker
	case "libpod", "libpod-payload":
		return RuntimePodman
	}
	return ""
}

// parsePod returns the UID, with dashes, of pod<uid> (cgroupfs driver) or
// [...-]pod<uid with underscores>.slice (systemd driver), else "".
func parsePod(name string) string {
	name = strings.TrimSuffix(name, ".slice")
	// No hexadecimal digit is in "pod", so the last one precedes the UID.
	at := strings.LastIndex(name, "pod")
	if at < 0 || (at > 0 && name[at-1] != '-') {
		return ""
	}
	uid := name[at+len("pod"):]
	if len(uid) == 32 && isHex(uid) {
		return uid
	}
	if len(uid) != 36 {
		return ""
	}
	uid = strings.ReplaceAll(uid, "_", "-")
	for i, part := range strings.Split(uid, "-") {
		if !isHex(part) || len(part) != uuidPart(i) {
			return ""
		}
	}
	return uid
}

// uuidPart is the length of the i-th group of a UUID, 0 past the last.
func uuidPart(i int) int {
	switch i {
	case 0:
		return 8
	case 1, 2, 3:
		return 4
	case 4:
		return 12
	}
	return 0
}

func isContainerID(s string) bool { return len(s) == 64 && isHex(s) }

// isHex reports whether s has lower-case hexadecimal digits only.
func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// innermostUnit returns the systemd service or scope nearest to the leaf. One of
// another manager than the host's has the name of what that manager runs in before it,
// as user@1000.service:web.service: others, and the host, may have one of the same name.
func innermostUnit(elems []element) string {
	for i := len(elems) - 1; i >= 0; i-- {
		e := elems[i]
		if e.monitor || isSession(e.name) {
			return ""
		}
		if e.name == "init.scope" {
			continue // the manager itself, named by the unit around it
		}
		if strings.HasSuffix(e.name, ".service") || strings.HasSuffix(e.name, ".scope") {
			return manager(elems[:i]) + unescapeUnit(e.name)
		}
	}
	return ""
}

// lxcPayload is how LXC begins the names of its containers' cgroups.
const lxcPayload = "lxc.payload."

// manager returns the name, with a colon, of the outermost unit or LXC container in
// elems, or nothing.
func manager(elems []element) string {
	for i, e := range elems {
		switch {
		case strings.HasPrefix(e.name, lxcPayload):
			return strings.TrimPrefix(e.name, lxcPayload) + ":"
		case i > 0 && elems[i-1].name == "lxc":
			return e.name + ":"
		case strings.HasSuffix(e.name, ".service"), strings.HasSuffix(e.name, ".scope") && e.name != "init.scope":
			return unescapeUnit(e.name) + ":"
		}
	}
	return ""
}

// isSession reports whether a scope holds what a user runs by hand: a login, a
// terminal's tab, a pane of tmux.
func isSession(name string) bool {
	if !strings.HasSuffix(name, ".scope") {
		return false
	}
	return strings.HasPrefix(name, "session-") ||
		strings.HasPrefix(name, "vte-spawn-") ||
		strings.HasPrefix(name, "tmux-spawn-")
}

// unescapeUnit undoes systemd's escapes: \xHH for a byte, and an underscore
// before names that could be taken for a file of the cgroup. A name that would
// then hold unprintable characters is returned as it is.
func unescapeUnit(name string) string {
	plain := strings.TrimPrefix(name, "_")
	if !strings.Contains(plain, `\x`) {
		return plain
	}
	var b strings.Builder
	for i := 0; i < len(plain); i++ {
		if c, ok := escapedByte(plain[i:]); ok {
			b.WriteByte(c)
			i += len(`\xHH`) - 1
			continue
		}
		b.WriteByte(plain[i])
	}
	if s := b.String(); printable(s) {
		return s
	}
	return plain
}

func escapedByte(s string) (byte, bool) {
	if len(s) < len(`\xHH`) || s[0] != '\\' || s[1] != 'x' {
		return 0, false
	}
	b, err := hex.DecodeString(s[2:4])
	if err != nil {
		return 0, false
	}
	return b[0], true
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
