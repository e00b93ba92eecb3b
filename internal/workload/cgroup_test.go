// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const (
	id1 = "1d0a9e1f8a7c4f5b9e3d2c1b0a99887766554433221100ffeeddccbbaa998877"
	id2 = "2e1b0f2a9b8d5a6c0f4e3d2c1baa998877665544332211000ffeeddccbbaa998"
	uid = "3f5c1d7e-8a2b-4c6d-9e0f-1a2b3c4d5e6f"
	// uidSlice is uid in the name of a systemd slice.
	uidSlice   = "3f5c1d7e_8a2b_4c6d_9e0f_1a2b3c4d5e6f"
	uid2       = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	staticHash = "0123456789abcdef0123456789abcdef"
)

func TestParseCgroupKubernetes(t *testing.T) {
	podOnly := CgroupInfo{PodUID: uid}
	in := func(runtime string) CgroupInfo { return CgroupInfo{runtime, id1, uid, ""} }
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSlice + ".slice"
	for _, tt := range []struct {
		name, path string
		want       CgroupInfo
	}{
		{"cgroupfs burstable", "/kubepods/burstable/pod" + uid + "/" + id1, in("")},
		{"cgroupfs best effort", "/kubepods/besteffort/pod" + uid + "/" + id1, in("")},
		{"cgroupfs guaranteed", "/kubepods/pod" + uid + "/" + id1, in("")},
		{"prefix of a nested host", "/k8slab-n1/kubepods/burstable/pod" + uid + "/" + id1, in("")},
		{"cgroupfs pod itself", "/kubepods/burstable/pod" + uid, podOnly},
		{"cgroupfs static pod", "/kubepods/burstable/pod" + staticHash + "/" + id1, CgroupInfo{"", id1, staticHash, ""}},
		{"cgroupfs crio", "/kubepods/pod" + uid + "/crio-" + id1, in(RuntimeCRIO)},
		{"cgroupfs crio monitor", "/kubepods/pod" + uid + "/crio-conmon-" + id1, podOnly},
		{"systemd containerd", slice + "/cri-containerd-" + id1 + ".scope", in(RuntimeContainerd)},
		{"systemd crio", slice + "/crio-" + id1 + ".scope", in(RuntimeCRIO)},
		{"systemd crio with crun", slice + "/crio-" + id1 + ".scope/container", in(RuntimeCRIO)},
		{"systemd crio monitor", slice + "/crio-conmon-" + id1 + ".scope", podOnly},
		{"systemd docker", slice + "/docker-" + id1 + ".scope", in(RuntimeDocker)},
		{"systemd unknown runtime", slice + "/newruntime-" + id1 + ".scope", in("")},
		{"systemd pod itself", slice, podOnly},
		{
			"systemd guaranteed",
			"/kubepods.slice/kubepods-pod" + uidSlice + ".slice/cri-containerd-" + id1 + ".scope",
			in(RuntimeContainerd),
		},
		{
			"systemd static pod",
			"/kubepods.slice/kubepods-pod" + staticHash + ".slice/crio-" + id1 + ".scope",
			CgroupInfo{RuntimeCRIO, id1, staticHash, ""},
		},
		{
			"systemd with a cgroup root of the kubelet's own",
			"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + uidSlice + ".slice/cri-containerd-" + id1 + ".scope",
			in(RuntimeContainerd),
		},
		{
			"colon form below a service",
			"/system.slice/containerd.service/kubepods-burstable-pod" + uidSlice + ".slice:cri-containerd:" + id1,
			in(RuntimeContainerd),
		},
		{"colon form at the top", "/kubepods-pod" + uidSlice + ".slice:crio:" + id1 + "/init.scope", in(RuntimeCRIO)},
		{"systemd inside the container", slice + "/cri-containerd-" + id1 + ".scope/init.scope", in(RuntimeContainerd)},
		{"service inside the container", slice + "/cri-containerd-" + id1 + ".scope/system.slice/nginx.service", in(RuntimeContainerd)},
		{"docker inside the container", "/kubepods/pod" + uid + "/" + id1 + "/docker/" + id2, in("")},
		{
			"node is a docker container, cgroupfs",
			"/docker/" + id2 + "/kubelet/kubepods/burstable/pod" + uid + "/" + id1, in(""),
		},
		{
			"node is a docker container, systemd",
			"/system.slice/docker-" + id2 + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" +
				uidSlice + ".slice/cri-containerd-" + id1 + ".scope",
			in(RuntimeContainerd),
		},
		{
			"node is a pod",
			"/kubepods/pod" + uid2 + "/" + id2 + "/kubelet/kubepods/pod" + uid + "/" + id1, in(""),
		},
		{"seen from a cgroup namespace", "/../../pod" + uid + "/" + id1, in("")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ParseCgroup(tt.path)); diff != "" {
				t.Errorf("ParseCgroup(%q) (-want +got):\n%s", tt.path, diff)
			}
		})
	}
}

func TestParseCgroupContainers(t *testing.T) {
	in := func(runtime string) CgroupInfo { return CgroupInfo{runtime, id1, "", ""} }
	user := "/user.slice/user-1000.slice/user@1000.service/user.slice"
	for _, tt := range []struct {
		name, path string
		want       CgroupInfo
	}{
		{"docker, cgroupfs", "/docker/" + id1, in(RuntimeDocker)},
		{"docker, systemd", "/system.slice/docker-" + id1 + ".scope", in(RuntimeDocker)},
		{"docker, rootless", user + "/docker-" + id1 + ".scope", in(RuntimeDocker)},
		{"docker, custom parent", "/build.slice/docker-" + id1 + ".scope", in(RuntimeDocker)},
		{"docker, its namespace in containerd", "/moby/" + id1, in(RuntimeDocker)},
		{"docker in docker", "/docker/" + id1 + "/docker/" + id2, in(RuntimeDocker)},
		{"node of a cluster", "/docker/" + id1 + "/kubelet.slice/kubelet.service", in(RuntimeDocker)},
		{"colon form", "/system.slice:docker:" + id1, in(RuntimeDocker)},
		{"containerd, default namespace", "/default/" + id1, in(RuntimeContainerd)},
		{"containerd, Kubernetes' namespace", "/k8s.io/" + id1, in(RuntimeContainerd)},
		{"containerd, colon form", "/system.slice:cri-containerd:" + id1, in(RuntimeContainerd)},
		{"a neighbour, seen from a cgroup namespace", "/../cri-containerd-" + id1 + ".scope", in(RuntimeContainerd)},
		{"Docker beside the pod that runs it", "/docker/" + id1 + "/init.scope", in(RuntimeDocker)},
		{"nerdctl", "/system.slice/nerdctl-" + id1 + ".scope", in(RuntimeContainerd)},
		{"unknown parent", "/batch/job7/" + id1, in("")},
		{"podman", "/machine.slice/libpod-" + id1 + ".scope", in(RuntimePodman)},
		{"podman with crun", "/machine.slice/libpod-" + id1 + ".scope/container", in(RuntimePodman)},
		{"podman, rootless", user + "/libpod-" + id1 + ".scope/container", in(RuntimePodman)},
		{"podman pod, systemd", "/machine.slice/libpod_pod_" + id2 + ".slice/libpod-" + id1 + ".scope", in(RuntimePodman)},
		{"podman pod, cgroupfs", "/libpod_parent/" + id2 + "/libpod-" + id1, in(RuntimePodman)},
		{"podman in a unit", "/system.slice/web.service/libpod-payload-" + id1, in(RuntimePodman)},
		{"podman monitor", "/machine.slice/libpod-conmon-" + id1 + ".scope", CgroupInfo{}},
		{"podman monitor, rootless", user + "/libpod-conmon-" + id1 + ".scope", CgroupInfo{}},
		{"podman pod without container", "/libpod_parent/" + id2, CgroupInfo{}},
		{"short id", "/docker/" + id1[:12], CgroupInfo{}},
		{"upper case is no id", "/docker/" + strings.ToUpper(id1), CgroupInfo{}},
		{"id behind an unknown prefix", "/snapshot-" + id1, CgroupInfo{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, ParseCgroup(tt.path)); diff != "" {
				t.Errorf("ParseCgroup(%q) (-want +got):\n%s", tt.path, diff)
			}
		})
	}
}

func TestParseCgroupUnits(t *testing.T) {
	for _, tt := range []struct{ name, path, unit string }{
		{"empty", "", ""},
		{"root", "/", ""},
		{"slashes", "///", ""},
		{"service", "/system.slice/sshd.service", "sshd.service"},
		{"instance", "/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"},
		{"cgroup inside a service", "/system.slice/nginx.service/workers", "nginx.service"},
		{"scope", "/system.slice/run-r1234.scope", "run-r1234.scope"},
		{"virtual machine", `/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`, "machine-qemu-1-vm.scope"},
		{"user's service", "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "user@1000.service:foo.service"},
		{"machine's service", "/machine.slice/machine-web.scope/payload/system.slice/sshd.service", "machine-web.scope:sshd.service"},
		{"LXC container's service", "/lxc.payload.web/system.slice/sshd.service", "web:sshd.service"},
		{"LXC container's service, cgroupfs", "/lxc/web/system.slice/sshd.service", "web:sshd.service"},
		{"user's manager", "/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service"},
		{"system's manager", "/init.scope", ""},
		{"login", "/user.slice/user-1000.slice/session-3.scope", ""},
		{"terminal", "/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-6e0c.scope", ""},
		{"slice only", "/user.slice/user-1000.slice", ""},
		{"plain directory", "/batch/job7", ""},
		{"kubelet", "/system.slice/kubelet.service", "kubelet.service"},
		{"escaped name of the cgroup", "/system.slice/_cpu.service", "cpu.service"},
		{"escaped letter", `/system.slice/caf\xc3\xa9.service`, "café.service"},
		{"escape sequence stays escaped", `/system.slice/a\x1b[31m.service`, `a\x1b[31m.service`},
		{"broken escapes", `/system.slice/a\x2.service`, `a\x2.service`},
		{"broken escape at the end", `/system.slice/\x2d\xzz.scope`, `-\xzz.scope`},
		{"invalid text stays escaped", `/system.slice/\xff\x2d.scope`, `\xff\x2d.scope`},
		{"like a pod", "/system.slice/podman.service", "podman.service"},
		{"like a pod's slice", "/podx.slice/a.service", "a.service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(CgroupInfo{Unit: tt.unit}, ParseCgroup(tt.path)); diff != "" {
				t.Errorf("ParseCgroup(%q) (-want +got):\n%s", tt.path, diff)
			}
		})
	}
}

func TestEnclosing(t *testing.T) {
	node := "/docker/" + id2
	outer := node + "/kubepods/pod" + uid2 + "/" + id1
	got := enclosing(outer + "/kubelet/kubepods/pod" + uid + "/crio-" + id2 + "/init.scope")
	want := []CgroupInfo{
		{RuntimeDocker, id2, "", ""},
		{"", id1, uid2, ""},
		{RuntimeCRIO, id2, uid, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("enclosing (-want +got):\n%s", diff)
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("/kubepods/burstable/pod" + uid + "/" + id1)
	f.Add("/kubepods.slice/kubepods-pod" + uidSlice + ".slice/cri-containerd-" + id1 + ".scope/init.scope")
	f.Add("/system.slice/containerd.service/kubepods-pod" + uidSlice + ".slice:cri-containerd:" + id1)
	f.Add("/../libpod_parent/" + id2 + "/libpod-" + id1)
	f.Add(`/system.slice/a\x2db\xc3.service`)
	f.Add("pod" + staticHash)
	f.Fuzz(func(t *testing.T, path string) {
		info := ParseCgroup(path)
		if info.ContainerID != "" && !isContainerID(info.ContainerID) {
			t.Errorf("container id %q", info.ContainerID)
		}
		if info.PodUID != "" && "pod"+info.PodUID != "pod"+parsePod("pod"+info.PodUID) {
			t.Errorf("pod UID %q", info.PodUID)
		}
		if info.Unit != "" && (info.ContainerID != "" || info.PodUID != "") {
			t.Errorf("unit beside a container or pod: %+v", info)
		}
		if info.Runtime != "" && info.ContainerID == "" {
			t.Errorf("runtime without a container: %+v", info)
		}
		// What a container makes inside itself is the container's.
		if inside := ParseCgroup(path + "/init.scope"); info.ContainerID != "" && inside != info {
			t.Errorf("%q is %+v, a cgroup inside it %+v", path, info, inside)
		}
		enclosing(path) // ends
	})
}

// FuzzKnown: whatever a cgroup is called, what it is named by is text, and tells the
// same container and pod.
func FuzzKnown(f *testing.F) {
	f.Add("/user.slice/x\xff")
	f.Add("/system.slice/a\\xffb.service")
	f.Add("/x\xff/kubepods-pod12345678_1234_1234_1234_123456789012.slice")
	f.Fuzz(func(t *testing.T, cgroupPath string) {
		e := known(7, cgroupPath)
		for _, s := range []string{e.id.Name, e.id.CgroupPath, e.id.ContainerID, e.id.ContainerRuntime, e.id.PodUID} {
			if !utf8.ValidString(s) {
				t.Errorf("%q gives %q", cgroupPath, s)
			}
		}
		if info := ParseCgroup(cgroupPath); info.ContainerID != e.id.ContainerID || info.PodUID != e.id.PodUID {
			t.Errorf("%q: container %q of pod %q, want %q and %q", cgroupPath, e.id.ContainerID, e.id.PodUID, info.ContainerID, info.PodUID)
		}
	})
}
